"""Finite automata over a vocabulary: built, combined, and run over the word probabilities of a denoiser."""
