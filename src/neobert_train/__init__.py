"""Pre-train NeoBERT text encoders, from raw text to a model on the Hugging Face Hub."""

__version__ = "0.1.0"
