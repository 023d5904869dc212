"""Random numbers that are a function of a key, so that there is no generator state to save."""

import hashlib

import numpy as np


def keyed_generator(*key: int | str) -> np.random.Generator:
    """Return a counter-based generator (Philox 4x64) whose numbers depend only on `key`.

    The key is hashed, so keys that differ in one place give independent streams.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
