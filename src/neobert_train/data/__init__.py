"""From files to batches.

    source units -> documents -> tokenised chunks -> mixture -> packed micro-batches -> Batch
    sources/        lane/order   lane/streams        lane/mixture  lane/packing         lane/lane, loader
    or shards/, documents that `prepare` has tokenised

Every stage is an iterator over one lane. Each item knows the position it came from, and a batch
carries the state from which its lane continues after it; so resuming is seeking, never replaying.

    corpus.py          the units of all sources of a run, and which files they are
    loader.py          the batches of a step, read ahead by the processes of workers.py
    heldout.py         the documents that a run is evaluated on
    training_texts.py  the texts that a tokenizer is learnt from
"""
