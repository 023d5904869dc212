"""Text to token ids: where a tokenizer lies, what its entries stand for, and long texts."""
