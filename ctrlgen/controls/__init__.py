"""What is asked for: the control language, what a classifier offers, templates, and where classifiers are found."""
