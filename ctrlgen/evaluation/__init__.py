"""Fluency, control success, diversity and speed, beside human text of the same targets."""
