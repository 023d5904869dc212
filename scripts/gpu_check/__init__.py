"""The sections of check_on_gpu.py: modules whose `run` yields rows of the table as it finds them."""
