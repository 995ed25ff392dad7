"""Between text and words: splitting, joining, the vocabulary, words in common."""
