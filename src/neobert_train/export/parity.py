"""Proof that an exported folder computes what the trained model computes."""

from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from neobert_train.modeling.heads import NeoBERTForMaskedLM

TOLERANCE = 1e-5
_TEXTS = (
    "The capital of France is Paris, and the answer to the question is not known.",
    "My fellow citizens:",
    "0123456789 ÄÖÜ éàè 中文 — punctuation, and a longer sentence so that lengths differ!",
)


class ParityError(RuntimeError):
    """An export does not give the numbers of the model it was made from."""


def check_parity(folder: Path, model: NeoBERTForMaskedLM) -> float:
    """Compare logits of the exported folder, loaded by transformers, with the model's own.

    Args:
        folder: the export.
        model: in fp32 on the CPU.

    Returns:
        The largest absolute difference of any logit.

    Raises:
        ParityError: it exceeds 1e-5.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    exported = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    inputs = tokenizer(list(_TEXTS), padding=True, return_tensors="pt")
    training = model.training
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        actual = exported(**inputs).logits
    model.train(training)
    difference = float((expected - actual).abs().max())
    if not difference <= TOLERANCE:
        raise ParityError(
            f"the export in {folder} gives logits that differ by {difference:.3g} from the trained "
            f"model's; it was not put in place"
        )
    return difference
