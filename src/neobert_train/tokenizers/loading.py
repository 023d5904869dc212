"""Where a tokenizer lies, and how it is read."""

import os
from pathlib import Path

from neobert_train.errors import InputError
from neobert_train.tokenizers.text_tokenizer import TextTokenizer
from tokenizers import Tokenizer

SHIPPED_TOKENIZER = Path(__file__).resolve().parents[1] / "assets" / "bert-base-uncased"
_SHIPPED_NAMES = ("bert-base-uncased", "google-bert/bert-base-uncased")


def load_tokenizer(path: str) -> TextTokenizer:
    """The tokenizer of a folder, a `tokenizer.json`, the shipped name or a Hub name.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    file = _find_tokenizer_file(path)
    try:
        return TextTokenizer(Tokenizer.from_file(file), path)
    except InputError:
        raise
    except Exception as error:  # the Rust library raises plain Exception
        raise InputError(f"{file} cannot be read as a tokenizer.json: {error}") from error


def _find_tokenizer_file(path: str) -> str:
    local = os.path.expanduser(path)
    if os.path.isfile(local):
        return local
    if os.path.isdir(local):
        file = os.path.join(local, "tokenizer.json")
        if os.path.isfile(file):
            return file
        raise InputError(f"the folder {path} holds no tokenizer.json: name another tokenizer.path")
    if path in _SHIPPED_NAMES:
        return str(SHIPPED_TOKENIZER / "tokenizer.json")
    return _download_tokenizer(path)


def _download_tokenizer(name: str) -> str:
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(name, "tokenizer.json")
    except Exception as error:  # whatever the Hub client or the network raises
        raise InputError(
            f"the tokenizer '{name}' is neither a folder, a tokenizer.json nor reachable on the Hub "
            f"({type(error).__name__}): write tokenizer.path=bert-base-uncased for the shipped one"
        ) from error
