"""The file that a stage leaves: what is in it, how it is written, checked and read."""
