"""The models that the uses are tried on, and the numbers that they should give."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from compatibility.given import HUB_NAME
from neobert_train.config.command_schema import Pooling
from neobert_train.export.onnx import write_onnx
from neobert_train.export.parity import link_as_cached
from neobert_train.export.pooling import write_pooling
from neobert_train.modeling import heads
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.models.neobert import NeoBERTEncoder
from neobert_train.tokenizers.loading import load_tokenizer
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

CONTEXT = 512
TEXTS = [
    "Peace and work for every citizen of the union.",
    "My fellow Americans:",
    "The state of our union is strong, said the President to the Congress in January.",
]
LABELS = ("contradiction", "neutral", "entailment")
HEADS = {
    "sequence": heads.NeoBERTForSequenceClassification,
    "token": heads.NeoBERTForTokenClassification,
    "question": heads.NeoBERTForQuestionAnswering,
    "choice": heads.NeoBERTForMultipleChoice,
}


def write_models(folder: Path) -> None:
    """Export small random models of all kinds, also into `hub` as the Hub's cache lies."""
    torch.manual_seed(0)
    config = NeoBERTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        embedding_init_range=0.5, decoder_init_range=0.2, classifier_init_range=0.2,
        id2label=dict(enumerate(LABELS)), label2id={name: n for n, name in enumerate(LABELS)},
    )  # fmt: skip
    tokenizer = load_tokenizer("bert-base-uncased")
    model = heads.NeoBERTForMaskedLM(config).eval()
    poolings = {"model": Pooling.none, "mean": Pooling.mean, "cls": Pooling.cls}
    for name, pooling in poolings.items():
        NeoBERTEncoder(model).write(folder / name, tokenizer, CONTEXT)
        if pooling is not Pooling.none:
            write_pooling(folder / name, config.hidden_size, pooling, CONTEXT)
    write_onnx(folder / "mean", model, model.config.max_length)
    link_as_cached(folder / "model", folder / "hub" / f"models--{HUB_NAME.replace('/', '--')}")
    expected = _compute(model, *_encode(tokenizer))
    inputs = expected["ids"], expected["mask"]
    for name, head in HEADS.items():
        tuned = head(config).eval()
        tuned.model.load_state_dict(model.model.state_dict())
        NeoBERTEncoder(tuned).write(folder / name, tokenizer, CONTEXT)
        _rename_architecture(folder / name / "config.json", head.__name__)
        with torch.no_grad():
            output = tuned(*(x[None] if name == "choice" else x for x in inputs))
        expected[name] = output[0]
    save_file({name: value.contiguous() for name, value in expected.items()},
              folder / "expected.safetensors")  # fmt: skip
    (folder / "texts.json").write_text(json.dumps(TEXTS), encoding="utf-8")


def _encode(tokenizer: TextTokenizer) -> tuple[Tensor, Tensor]:
    """Return ids and mask [3, S] of the texts, padded on the right."""
    special = tokenizer.special
    rows = [[special.cls, *ids.tolist(), special.sep] for ids in tokenizer.encode(TEXTS)]
    length = max(map(len, rows))
    ids = torch.tensor([row + [special.pad] * (length - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])


def _compute(model: heads.NeoBERTForMaskedLM, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    labels = torch.full_like(ids, -100)
    labels[:, 1:4] = ids[:, 2:5]
    output = model(ids, mask, labels=labels, output_hidden_states=True)
    output.loss.backward()
    return {
        "ids": ids, "mask": mask, "labels": labels, "logits": output.logits.detach(),
        "loss": output.loss.detach(), "hidden": output.hidden_states[-1].detach(),
        "gradient": model.model.transformer_encoder[0].qkv.weight.grad,
    }  # fmt: skip


def _rename_architecture(path: Path, name: str) -> None:
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config["architectures"] = [name]
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
