"""The encoder in the ONNX format, for runtimes without torch."""

import contextlib
import importlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from neobert_train.errors import InputError

ONNX_FILE = Path("onnx") / "model.onnx"
TOLERANCE = 1e-4
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Numbers of sequences and tokens, none of which the graph may have taken for fixed.
# The last is longer than the windows of networks that attend locally.
_TRIED_SHAPES = ((1, 1), (3, 7), (2, 64), (1, 300))


class _Encoder(nn.Module):
    """The inputs and the output by which runtimes know an encoder."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the hidden states [B, S, hidden_size] of token ids and mask [B, S]."""
        hidden: Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, return_dict=True
        ).last_hidden_state
        return hidden


def write_onnx(folder: Path, model: PreTrainedModel, max_length: int) -> float:
    """Write `onnx/model.onnx`, for any number of sequences of any length, and try it.

    Args:
        folder: of the export.
        model: in fp32 on the CPU; its encoder is written, without the vocabulary projection.
        max_length: most tokens of a sequence that it takes.

    Returns:
        The largest difference of a hidden state that onnxruntime gives.

    Raises:
        InputError: a package is missing, or what onnxruntime gives differs by more than 1e-4.
    """
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"format=onnx needs the package {package}: pip install {' '.join(_PACKAGES)}"
            )
    encoder = _Encoder(model.base_model).eval()
    path = folder / ONNX_FILE
    path.parent.mkdir(exist_ok=True)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    ids, mask = _make_inputs(2, 9, model.config.vocab_size)
    with _quiet():
        program = torch.onnx.export(
            encoder, (ids, mask), dynamo=True, optimize=True, verbose=False,
            input_names=["input_ids", "attention_mask"], output_names=["last_hidden_state"],
            dynamic_shapes={"input_ids": dynamic, "attention_mask": dynamic},
        )  # fmt: skip
        assert program is not None
        program.save(path)
    return _compare(path, encoder, model.config.vocab_size, max_length)


def _make_inputs(batch: int, length: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, length // 2 + 1 :] = 0
    return ids, mask


def _compare(path: Path, encoder: nn.Module, vocab_size: int, max_length: int) -> float:
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    for rows, length in _TRIED_SHAPES:
        ids, mask = _make_inputs(rows, min(length, max_length), vocab_size)
        inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        (found,) = session.run(["last_hidden_state"], inputs)
        with torch.no_grad():
            expected = encoder(ids, mask).numpy()
        largest = max(largest, float(np.abs(found - expected).max()))
    if not largest <= TOLERANCE:
        raise InputError(
            f"onnxruntime gives hidden states that differ by {largest:.3g}, so that this network cannot "
            f"be exported as ONNX: leave format=onnx out"
        )
    return largest


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep what the exporter says of itself from the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)
