"""Patterns over words: the language, the words that its parts stand for, automata and a matcher of finished texts."""
