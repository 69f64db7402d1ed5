"""Other methods, several seeds, unseen text."""
