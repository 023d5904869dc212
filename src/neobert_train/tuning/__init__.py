"""Training an encoder for a task, by transformers' and sentence-transformers' own trainers."""
