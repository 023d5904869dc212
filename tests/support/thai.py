"""Documents written without spaces, of which a vocabulary made for English knows nothing."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_WORDS = "การ ประเทศ ไทย มี ความ สวย งาม ผู้ คน เดิน ทาง ไป ตลาด ใน เมือง ใหญ่ และ กิน ข้าว กับ ปลา"


def make_thai(number: int, num_words: int = 150) -> str:
    """A document of so many words, of some 3.5 characters each."""
    words = _WORDS.split()
    places = np.random.default_rng(number).integers(len(words), size=num_words)
    return "".join(words[place] for place in places)


def write_texts(path: Path, texts: Iterable[str]) -> str:
    """Write JSON Lines; returns the override of `data.` that reads them."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return f"paths=[{path}]"
