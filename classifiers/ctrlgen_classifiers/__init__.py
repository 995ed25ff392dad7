"""The attribute classifiers that come with ctrlgen, one file each."""
