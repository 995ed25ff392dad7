"""How denoisers and classifier heads are learned."""
