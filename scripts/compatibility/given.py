"""What the uses of an exported model work with, and how they compare numbers."""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import load_file
from torch import Tensor

HUB_NAME = "org/name"
TOLERANCE = 1e-5
# Of ONNX, of numbers in bf16 and fp16, and of those from weights of 8 bits.
ONNX_TOLERANCE, HALF_TOLERANCE, QUANTIZED_TOLERANCE = 1e-4, 0.03, 0.3


@dataclass(frozen=True)
class Given:
    """What a use works with.

    Attributes:
        models: holds the exported folders: `model`; `sequence`, `token`, `question` and `choice`, with
            heads; `mean` and `cls`, for sentence-transformers, the first with ONNX.
        expected: tensors that the exporting process computed.
        texts: those whose ids are `expected["ids"]`.
        scratch: an empty folder.
    """

    models: Path
    expected: dict[str, Tensor]
    texts: list[str]
    scratch: Path

    @property
    def padded(self) -> dict[str, Tensor]:
        """The ids and the mask [3, S] of the texts, padded on the right."""
        return {"input_ids": self.expected["ids"], "attention_mask": self.expected["mask"]}

    def load(self, head: str = "MaskedLM", folder: Any = "model", **settings: Any) -> Any:
        """Load `AutoModelFor<head>`, or `AutoModel` where it is empty, in eval mode."""
        auto = getattr(transformers, f"AutoModelFor{head}" if head else "AutoModel")
        name = folder if folder == HUB_NAME else str(self.models / folder)
        return auto.from_pretrained(name, trust_remote_code=True, **settings).eval()

    def load_tokenizer(self, folder: str = "model") -> Any:
        """Load `AutoTokenizer`."""
        return transformers.AutoTokenizer.from_pretrained(str(self.models / folder))


def read_given(models: Path, scratch: Path) -> Given:
    """Read what the exporting process wrote."""
    expected = load_file(models / "expected.safetensors")
    return Given(models, expected, json.loads((models / "texts.json").read_text()), scratch)


class NotOfferedError(Exception):
    """This environment, or this version of a library, has no such use."""


def want(module: str, name: str) -> Any:
    """Import a name of a library."""
    package = module.partition(".")[0]
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):
            raise NotOfferedError(f"{error.name} is not installed") from error
        raise
    if not hasattr(found, name):
        raise NotOfferedError(f"{package} has no {name}")
    return getattr(found, name)


def compare(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Refuse numbers that differ by more than this share of the largest expected one."""
    if found.shape != expected.shape:
        raise AssertionError(f"shape {[*found.shape]}, not {[*expected.shape]}")
    difference = (found.detach().float() - expected.float()).abs().max() / expected.abs().max()
    if not difference <= tolerance:
        raise AssertionError(f"differs by {difference:.1e} of the largest number")


# Returns what is worth saying, if anything; raises where the use fails.
Use = Callable[[Given], str | None]
