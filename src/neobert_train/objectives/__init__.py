"""What an encoder is trained to do with a batch."""
