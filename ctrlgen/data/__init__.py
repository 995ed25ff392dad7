"""Texts and labels as users bring them."""
