"""Text: from the name of a dataset to batches of tokens."""
