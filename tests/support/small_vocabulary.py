"""A tokenizer with a thousand tokens, for runs whose weights and checkpoints had better be small.

Two fifths of the time of a run of small blocks go into scoring, updating and writing the 30,522 rows of
the shipped vocabulary.
"""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

from neobert_train.tokenizers.loading import load_tokenizer

NUM_TOKENS = 1024
_PLACE = "tokenizer.json"


@cache
def build_small_tokenizer() -> Path:
    """The shipped tokenizer with its special tokens, its letters and the most frequent words only."""
    folder = Path(tempfile.mkdtemp(prefix="small-tokenizer-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    load_tokenizer("bert-base-uncased").save(folder, 512)
    definition = json.loads((folder / _PLACE).read_text())
    added = definition["added_tokens"]
    vocabulary = definition["model"]["vocab"]
    ordered = sorted(filter(str.isascii, vocabulary), key=vocabulary.__getitem__)
    letters = [token for token in ordered if len(token.removeprefix("##")) == 1]
    words = filter(str.isalpha, ordered)  # the more frequent, the lower the id
    kept = list(dict.fromkeys([token["content"] for token in added] + letters + list(words)))
    ids = {token: index for index, token in enumerate(kept[:NUM_TOKENS])}
    definition["model"]["vocab"] = ids
    for token in added:
        token["id"] = ids[token["content"]]
    for name, token in definition["post_processor"]["special_tokens"].items():
        token["ids"] = [ids[name]]
    (folder / _PLACE).write_text(json.dumps(definition))
    return folder


def list_small_settings() -> list[str]:
    """What makes a run on the shipped texts quick: this vocabulary, and few texts to look through."""
    return [f"tokenizer.path={build_small_tokenizer()}", "evaluation.scan_documents=20"]
