"""A checkpoint as a folder that Hugging Face loads by itself."""
