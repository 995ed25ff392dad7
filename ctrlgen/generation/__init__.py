"""How a request is answered: guidance, denoising, corrections, explanations."""
