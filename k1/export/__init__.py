"""A checkpoint as a folder that the Hugging Face libraries open."""
