"""Uses of an exported model: compiled, traced, in ONNX, in 8 bits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compatibility.given import (
    HUB_NAME,
    ONNX_TOLERANCE,
    QUANTIZED_TOLERANCE,
    TOLERANCE,
    Given,
    Use,
    compare,
    want,
)


def compile_model(given: Given) -> str:
    """`torch.compile` with `fullgraph=True`, for three shapes"""
    model = given.load()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch, length in ((3, 18), (2, 9), (3, 5)):
            inputs = {name: value[:batch, :length] for name, value in given.padded.items()}
            compare(compiled(**inputs).logits, model(**inputs).logits)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return f"{graphs} graph{'s' * (graphs > 1)}"


def compile_training(given: Given) -> None:
    """`torch.compile` of a training step: the same loss and gradient"""
    model = given.load().train()
    loss = torch.compile(model)(**given.padded, labels=given.expected["labels"]).loss
    loss.backward()
    compare(loss, given.expected["loss"])
    gradient = model.model.transformer_encoder[0].qkv.weight.grad
    compare(gradient, given.expected["gradient"], 10 * TOLERANCE)


def _load_each(given: Given, **settings: Any) -> Iterator[tuple[Any, Tensor]]:
    """Yield the masked-language model and the classifier, with the logits expected of each."""
    yield given.load(**settings), given.expected["logits"]
    model = given.load("SequenceClassification", "sequence", **settings)
    yield model, given.expected["sequence"]


def _make_example() -> dict[str, Tensor]:
    return {
        "input_ids": torch.randint(1000, 9000, (2, 9)),
        "attention_mask": torch.ones(2, 9, dtype=torch.long),
    }


def _make_dynamic() -> dict[str, Any]:
    sizes = {0: torch.export.Dim("batch", max=1024), 1: torch.export.Dim("length", max=4096)}
    return {"input_ids": sizes, "attention_mask": sizes}


def export_program(given: Given) -> None:
    """`torch.export` for any batch and length, written and read; a classifier too"""
    for model, expected in _load_each(given):
        program = torch.export.export(
            model, (), kwargs=_make_example(), dynamic_shapes=_make_dynamic(), strict=False
        )
        torch.export.save(program, given.scratch / "model.pt2")
        module = torch.export.load(given.scratch / "model.pt2").module()
        compare(module(**given.padded).logits, expected)


def trace(given: Given) -> None:
    """`torch.jit.trace`, called with other shapes; a classifier too"""
    for model, expected in _load_each(given, return_dict=False):
        traced = torch.jit.trace(model, tuple(_make_example().values()))
        compare(traced(*given.padded.values())[0], expected)


def save_traced(given: Given) -> None:
    """`torch.jit.trace` of a model from the Hub, written and read"""
    model = given.load(folder=HUB_NAME, return_dict=False)
    traced = torch.jit.trace(model, tuple(_make_example().values()))
    traced.save(given.scratch / "model.pt")
    try:
        (logits,) = torch.jit.load(given.scratch / "model.pt")(*given.padded.values())
    except RuntimeError as error:
        if "Unknown type name" not in str(error):
            raise
        raise NotImplementedError(
            "TorchScript cannot read a module's name in which a part begins with a digit, as that of a "
            "commit may, which transformers puts there"
        ) from error
    compare(logits, given.expected["logits"])


class _Logits(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids, attention_mask).logits
        return logits


def save_frozen(given: Given) -> None:
    """The same inside a module of one's own, and with `torch.jit.freeze`"""
    module = _Logits(given.load(folder=HUB_NAME)).eval()
    traced = torch.jit.freeze(torch.jit.trace(module, tuple(_make_example().values())))
    traced.save(given.scratch / "model.pt")
    logits = torch.jit.load(given.scratch / "model.pt")(*given.padded.values())
    compare(logits, given.expected["logits"])


def quantize(given: Given) -> None:
    """`torch.ao.quantization.quantize_dynamic`: linear layers in 8 bits"""
    quantize_dynamic = want("torch.ao.quantization", "quantize_dynamic")
    model = quantize_dynamic(given.load(), {torch.nn.Linear}, dtype=torch.qint8)
    compare(model(**given.padded).logits, given.expected["logits"], QUANTIZED_TOLERANCE)


def export_onnx(given: Given) -> None:
    """`torch.onnx.export(dynamo=True)` for any batch and length, run by onnxruntime; a classifier too"""
    want("onnxscript", "__version__")
    path = given.scratch / "model.onnx"
    for model, expected in _load_each(given):
        program = torch.onnx.export(
            model, kwargs=_make_example(), dynamo=True, dynamic_shapes=_make_dynamic()
        )
        assert program is not None
        program.save(path)
        compare(_run_onnx(given, path), expected, ONNX_TOLERANCE)


def run_written_onnx(given: Given) -> None:
    """`onnx/model.onnx` of `export format=onnx`, run by onnxruntime"""
    found = _run_onnx(given, given.models / "mean" / "onnx" / "model.onnx")
    compare(found, given.expected["hidden"], ONNX_TOLERANCE)


def _run_onnx(given: Given, path: Path) -> Tensor:
    session = want("onnxruntime", "InferenceSession")(str(path))
    return torch.tensor(session.run(None, {k: v.numpy() for k, v in given.padded.items()})[0])


USES: list[Use] = [
    compile_model,
    compile_training,
    export_program,
    export_onnx,
    run_written_onnx,
    trace,
    save_traced,
    save_frozen,
    quantize,
]
