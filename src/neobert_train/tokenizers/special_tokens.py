"""Which entries of a vocabulary stand for something other than text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from neobert_train.errors import InputError

# Spellings by which a token is known whose files say nothing of it; the first one found counts.
_KNOWN_SPELLINGS = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>", "<cls>"),
    "sep": ("[SEP]", "</s>", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
}
ROLES = tuple(_KNOWN_SPELLINGS)
# Beginning and end of a text, as files of decoders call them.
_STAND_INS = {"cls": "bos", "sep": "eos"}
_MOST_SHOWN = 12


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that stand for something other than text.

    Attributes:
        pad, cls, sep, mask: the tokens of these roles.
        unk: what the model gives for text that it does not know; None if it knows every text.
    """

    pad: int
    unk: int | None
    cls: int
    sep: int
    mask: int

    def count_unknown(self, ids: np.ndarray) -> int:
        """Return how many ids of a text stand for what the tokenizer does not know."""
        return 0 if self.unk is None else int(np.count_nonzero(ids == self.unk))


def find_spellings(
    tokenizer: Tokenizer,
    name: str,
    model_unk: str | None,
    wanted: Mapping[str, str],
    declared: Mapping[str, str],
) -> dict[str, str]:
    """Return the spelling of the token of each role; a vocabulary may have no `unk`.

    Args:
        tokenizer: whose vocabulary has to hold them.
        name: of the tokenizer.
        model_unk: as `find_model_unk` gives it.
        wanted: by role, what the user set.
        declared: by role, and by `bos` and `eos`, what the files beside the tokenizer say.

    Raises:
        InputError: listing all roles without a token, and what to write.
    """
    found: dict[str, str] = {}
    problems: list[str] = []
    for role, spellings in _KNOWN_SPELLINGS.items():
        if role in wanted and tokenizer.token_to_id(wanted[role]) is None:
            problems.append(f"{show_setting(role, wanted[role])} is no entry of its vocabulary")
            continue
        candidates = [wanted.get(role), model_unk if role == "unk" else None]
        candidates += [declared.get(role), *spellings, declared.get(_STAND_INS.get(role, ""))]
        for token in candidates:
            if token is not None and tokenizer.token_to_id(token) is not None:
                found[role] = token
                break
        else:
            if role != "unk":
                problems.append(f"it has no {role} token: write {show_setting(role, 'TOKEN')}")
    if problems:
        raise InputError(_describe_problems(tokenizer, name, problems))
    # The embedding of padding stays zero, and what is hidden must not look like something else.
    for role in ("pad", "mask"):
        others = [model_unk, *(t for other, t in found.items() if other not in (role, "unk"))]
        if found[role] in others:
            raise InputError(
                f"the tokenizer '{name}' has '{found[role]}' as its {role} token and as another one: "
                f"write {show_setting(role, 'TOKEN')} with an entry that stands for nothing else"
            )
    return found


def show_setting(role: str, token: str) -> str:
    """Return what to write on a command line for the token of a role."""
    return f"'tokenizer.{role}_token=\"{token}\"'"


def _describe_problems(tokenizer: Tokenizer, name: str, problems: list[str]) -> str:
    special = [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
    shown = ", ".join(special[:_MOST_SHOWN]) or "none"
    return (
        f"the tokenizer '{name}' lacks tokens that masked language modelling needs:\n  "
        + "\n  ".join(problems)
        + f"\nTOKEN is an entry of its vocabulary (its special tokens are {shown}"
        + (", ..." if len(special) > _MOST_SHOWN else "")
        + "); to add entries, load it with transformers, call add_special_tokens({'mask_token': "
        "'[MASK]'}) and save_pretrained(FOLDER), and write tokenizer.path=FOLDER"
    )


def find_model_unk(model: Mapping[str, Any]) -> str | None:
    """Return the entry that a model gives for text that it does not know; None if it has none.

    Args:
        model: the part of a `tokenizer.json` of that name.
    """
    if model["type"] == "Unigram":
        unk_id = model["unk_id"]
        return None if unk_id is None else str(model["vocab"][unk_id][0])
    unk: str | None = model["unk_token"]
    return unk if unk in model["vocab"] else None
