"""Proof that an exported folder computes what the trained model computes, wherever it is loaded."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

TOLERANCE = 1e-5
_REPOSITORY, _COMMIT = "models--export--model", "0" * 40
# What only some users have, and this package.
_ABSENT = ("neobert_train", "deepspeed", "flash_attn", "flash_attn_interface", "hydra", "xformers")
_SCRIPT = f"""
import sys
for name in {_ABSENT}:
    sys.modules[name] = None
import torch
from safetensors.torch import save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

texts = [
    "The capital of France is Paris, and the answer to the question is not known.",
    "My fellow citizens:",
    "0123456789 ÄÖÜ éàè 中文 — punctuation, and a longer sentence so that lengths differ!",
]
inputs = AutoTokenizer.from_pretrained("export/model")(texts, padding=True, return_tensors="pt")
trusted = sys.argv[2] == "trusted"
model = AutoModelForMaskedLM.from_pretrained("export/model", trust_remote_code=trusted).eval()
with torch.no_grad():
    logits = model(**inputs).logits
save_file({{"logits": logits, **inputs}}, sys.argv[1])
"""


class ParityError(RuntimeError):
    """An export does not load, or does not give the numbers of the model it was made from."""


def check_parity(folder: Path, model: PreTrainedModel, needs_remote_code: bool) -> float:
    """Compare the logits of an exported folder with the model's own.

    transformers loads it from the layout in which its cache keeps a repository of the Hub, where it
    checks more than in a folder, in a process that has none of the packages around.

    Args:
        folder: the export.
        model: in fp32 on the CPU.
        needs_remote_code: whether code in the folder may run; otherwise it has to load without.

    Returns:
        The largest absolute difference of any logit.

    Raises:
        ParityError: it does not load, or the difference exceeds 1e-5.
    """
    with tempfile.TemporaryDirectory() as temporary:
        result = Path(temporary) / "result.safetensors"
        link_as_cached(folder.resolve(), Path(temporary) / "hub" / _REPOSITORY)
        environment = {
            **os.environ, "HF_HOME": temporary, "HF_HUB_CACHE": f"{temporary}/hub",
            "HF_MODULES_CACHE": f"{temporary}/modules", "HF_HUB_OFFLINE": "1",
            "PYTHONIOENCODING": "utf-8", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        trusted = "trusted" if needs_remote_code else ""
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, str(result), trusted], env=environment, cwd=temporary,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            errors="replace",
        )  # fmt: skip
        if done.returncode != 0:
            raise ParityError(
                f"the export in {folder} does not load; it was not put in place:\n{done.stderr}"
            )
        found = load_file(result)
    training = model.training
    with torch.no_grad():
        expected = model.eval()(
            input_ids=found["input_ids"], attention_mask=found["attention_mask"]
        ).logits
    model.train(training)
    difference = float((expected - found["logits"]).abs().max())
    if not difference <= TOLERANCE:
        raise ParityError(
            f"the export in {folder} gives logits that differ by {difference:.3g} from the trained "
            f"model's; it was not put in place"
        )
    return difference


def link_as_cached(folder: Path, repository: Path) -> None:
    """Lay a folder out as the Hub's cache does: links to blobs in a snapshot of a commit."""
    snapshot, blobs, refs = (
        repository / "snapshots" / _COMMIT,
        repository / "blobs",
        repository / "refs",
    )
    for path in (blobs, refs):
        path.mkdir(parents=True)
    (refs / "main").write_text(_COMMIT)
    for number, file in enumerate(path for path in folder.rglob("*") if path.is_file()):
        (blobs / str(number)).symlink_to(file)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
