"""Other methods, several seeds, unseen text, streams of more datasets."""
