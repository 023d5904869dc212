"""The model as it is trained and as it ships: these files are the exported remote code.

They import torch, transformers and each other, and nothing else of this package.
"""
