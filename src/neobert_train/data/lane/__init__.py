"""The way of a batch, from the order of the documents of one lane to a masked micro-batch.

order.py       which units a lane reads, and its documents shuffled within a window
streams.py     the documents of one source: admission.py, encoding.py
mixture.py     which source the next chunk comes from
packing.py     which chunks fill a micro-batch
masking.py     which tokens are predicted, whole words or spans of them by words.py
collate.py     chunks joined into a MicroBatch
lane.py        all of it in a row, with the state from which it continues
randomness.py  a generator for each key; targets.py says why there is nothing to predict
"""
