"""Pairs of texts to learn from, and small random encoders to teach."""

import json
import random

import torch

from neobert_train.config.model_schema import NeoBERTModelConfig
from neobert_train.models.neobert import NeoBERTEncoder

_LISTED = (
    "river stone quiet harbour copper winter ladder meadow signal orange thunder paper castle violin",
    "garden engine silver market window planet bridge forest candle mirror anchor feather rocket island",
)
WORDS = " ".join(_LISTED).split()


def make_rows(number, seed=0):
    """Rows of an anchor, a positive of the words that stand for its own, and a negative of others.

    Anchor and positive have no word in common, so that only a model that has learnt finds one by the other.
    """
    draw, half = random.Random(seed), len(WORDS) // 2
    rows = []
    for _ in range(number):
        places = draw.sample(range(half), 4)
        others = draw.sample([place for place in range(half) if place not in places], 4)
        rows.append(
            {
                "anchor": " ".join(WORDS[place] for place in places),
                "positive": " ".join(WORDS[half + place] for place in draw.sample(places, 4)),
                "negative": " ".join(WORDS[half + place] for place in others),
            }
        )
    return rows


def write_rows(file, rows):
    """Write rows as JSON lines; returns the file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_neobert(folder, tokenizer, max_length=64):
    """Write a small random NeoBERT as an export has it; returns the folder."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = NeoBERTModelConfig(intermediate_size=64, max_length=max_length, **shape)
    NeoBERTEncoder.build(config, tokenizer).write(folder, tokenizer, max_length)
    return folder
