"""From text to batches.

    source units -> documents -> tokenised chunks -> packed micro-batches -> Batch
    sources/        documents.py  tokenization.py     packing.py             lanes.py, loader.py

Every stage is an iterator over one lane. Each item knows the position it came from, and a batch
carries the state from which its lane continues after it; so resuming is seeking, never replaying.
"""
