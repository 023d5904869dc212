"""Special tokens that a document spells out are text, also for models that have them as pieces.

The library does not look for special tokens in a text when it is told so. But those of a Unigram model
are pieces of its vocabulary as well, and `<s>` in a page of HTML would be the beginning of a document.
"""

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer


def is_reachable(tokenizer: Tokenizer, special: Mapping[str, int], unk: int | None) -> bool:
    """Return whether a text that spells special tokens gets the id of one, other than `unk`.

    Args:
        tokenizer: told to encode special tokens as text.
        special: ids of all special tokens, by spelling.
        unk: what the model gives for text that it does not know.
    """
    reserved = set(special.values()) - {unk}
    texts = [text for token in special for text in (token, f"a {token} b")]
    return any(reserved & set(_encode(tokenizer, text)) for text in texts)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    try:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    except Exception:  # the library raises plain Exception for what the model cannot encode
        return []


def build_without_special(
    definition: Mapping[str, Any], special: Iterable[str], prefix: str
) -> Tokenizer:
    """Return a tokenizer with the same ids, in which no text gets the id of a special token.

    Args:
        definition: content of a `tokenizer.json`.
        special: spellings of all special tokens.
        prefix: what no text holds; their entries are renamed to begin with it.
    """
    names = {token: prefix + token for token in special}
    changed = copy.deepcopy(dict(definition))
    changed["post_processor"] = None
    for token in changed["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = changed["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): index for token, index in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = [
            pair for pair in model["merges"] if not {*pair, "".join(pair)} & names.keys()
        ]
    tokenizer = Tokenizer.from_str(json.dumps(changed))
    tokenizer.encode_special_tokens = True
    return tokenizer
