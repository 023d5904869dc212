"""The training loop, the DeepSpeed engine under it, checkpoints and metrics."""
