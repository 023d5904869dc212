"""The model's code as one file: whole, importable with torch and transformers only, from the Hub too."""

import ast
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.dynamic_module_utils import get_imports

from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.models.neobert import NeoBERTEncoder
from neobert_train.models.remote_code import AUTO_MAP, join_modules
from support.programs import find_python

# Packages that a user of the model may not have.
ABSENT = ("neobert_train", "xformers", "flash_attn", "deepspeed", "hydra", "datasets")


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tokenizer):
    """A small random model as a folder and as the Hub's cache keeps a repository, with its numbers."""
    root = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    config = NeoBERTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        decoder_init_range=0.3,
    )  # fmt: skip
    model = NeoBERTForMaskedLM(config).eval()
    NeoBERTEncoder(model).write(root / "folder", tokenizer, 512)
    repository, commit = root / "hub" / "models--org--name", "0" * 40
    snapshot = repository / "snapshots" / commit
    for folder in (repository / "refs", repository / "blobs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for file in (root / "folder").iterdir():
        blob = hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, repository / "blobs" / blob)
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", blob))
    ids = torch.randint(1000, 9000, (3, 12))
    mask = torch.ones_like(ids)
    mask[0, 7:] = mask[1, :4] = 0
    logits = model(ids, mask).logits
    logits[mask.bool()].square().mean().backward()
    gradient = model.model.encoder.weight.grad
    expected = {"ids": ids, "mask": mask, "logits": logits.detach(), "gradient": gradient}
    save_file(expected, root / "expected.safetensors")
    return root


LOAD = """
import sys
for name in {absent!r}:
    sys.modules[name] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, {auto}, AutoTokenizer

expected = load_file({root!r} + "/expected.safetensors")
model = {auto}.from_pretrained({name!r}, trust_remote_code=True)
assert type(model).__name__ == {kind!r}, type(model)
assert AutoConfig.from_pretrained({name!r}, trust_remote_code=True).max_length == 4096
AutoTokenizer.from_pretrained({name!r})("one text")
model.eval()
if {auto!r} == "AutoModelForMaskedLM":
    logits = model(expected["ids"], expected["mask"]).logits
    logits[expected["mask"].bool()].square().mean().backward()
    found = {{"logits": logits.detach(), "gradient": model.model.encoder.weight.grad}}
    save_file(found, {found!r})
model.save_pretrained({saved!r})
again = {auto}.from_pretrained({saved!r}, trust_remote_code=True).eval()
with torch.no_grad():
    ids = expected["ids"][:, :4]
    ids = ids[:, None] if "MultipleChoice" in {auto!r} else ids
    one, other = (x(ids)[0] for x in (model, again))
assert torch.equal(one, other)
"""


def load(exported, tmp_path, name, auto="AutoModelForMaskedLM"):
    """Load the model in a process that has only torch and transformers, and save it again."""
    kind = AUTO_MAP[auto].partition(".")[2]
    script = LOAD.format(
        absent=ABSENT, auto=auto, name=name, kind=kind, root=str(exported),
        found=str(tmp_path / "found.safetensors"), saved=str(tmp_path / "saved"),
    )  # fmt: skip
    done = subprocess.run(
        [find_python(), "-c", script], capture_output=True, text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1",
             "HF_HUB_CACHE": str(exported / "hub"), "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_it_loads_with_torch_and_transformers_only_and_gives_the_same_numbers(
    exported, tmp_path, place
):
    name = "org/name" if place == "hub" else str(exported / "folder")
    load(exported, tmp_path, name)
    expected = load_file(exported / "expected.safetensors")
    found = load_file(tmp_path / "found.safetensors")
    for key in ("logits", "gradient"):
        assert found[key].equal(expected[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("auto", [auto for auto in AUTO_MAP if auto != "AutoConfig"])
def test_every_head_loads_and_is_saved_with_its_code(exported, tmp_path, auto):
    load(exported, tmp_path, "org/name", auto)


def test_nothing_is_defined_twice_and_nothing_of_ours_imported():
    tree = ast.parse(join_modules())
    defined = []
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            defined.append(statement.name)
        elif isinstance(statement, ast.Assign):
            defined += [target.id for target in statement.targets]
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0 or statement.module == "configuration_neobert"
    assert sorted(defined) == sorted(set(defined))
    assert {name.partition(".")[2] for name in AUTO_MAP.values()} - {"NeoBERTConfig"} <= {*defined}


def test_what_transformers_takes_for_imports_are_torch_and_its_own(tmp_path):
    """It looks for them with patterns, in texts and within functions as well."""
    file = tmp_path / "modeling_neobert.py"
    file.write_text(join_modules())
    assert {*get_imports(file)} - {*sys.stdlib_module_names} == {"torch", "transformers"}
