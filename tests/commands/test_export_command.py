"""An export is loaded by transformers alone and computes what was trained."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from commands.conftest import run_command
from neobert_train.config.saved import load_train_config
from neobert_train.config.schema import ExportConfig
from neobert_train.export import parity
from neobert_train.export.hub import push_to_hub
from neobert_train.model_files import load_initial_weights
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.world import World

CLEAN_PROCESS = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "neobert_train":
            raise ImportError("not here")

sys.meta_path.insert(0, Refuse())
import torch
from transformers import (
    AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification,
    AutoTokenizer, pipeline,
)
folder, output = sys.argv[1:]
trusted = {"trust_remote_code": True}
tokenizer = AutoTokenizer.from_pretrained(folder, **trusted)
inputs = tokenizer(["peace and work", "a much longer text about the union"],
                   padding=True, return_tensors="pt")
assert "token_type_ids" not in inputs
assert AutoConfig.from_pretrained(folder, **trusted).max_length == 512
hidden = AutoModel.from_pretrained(folder, **trusted)(**inputs).last_hidden_state
assert hidden.shape[-1] == 64
classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, **trusted)
assert classifier(**inputs).logits.shape == (2, 3)
model = AutoModelForMaskedLM.from_pretrained(folder, **trusted).eval()
assert len(pipeline("fill-mask", model=folder, **trusted)("The [MASK] of the union.")) == 5
with torch.no_grad():
    torch.save({"logits": model(**inputs).logits, **inputs}, output)
model.save_pretrained(output + "-again")
assert AutoConfig.from_pretrained(output + "-again", **trusted).max_length == 512
"""


@pytest.fixture(scope="module")
def export(finished_run):
    output = run_command("export", f"run_dir={finished_run}")
    assert "exported step 3" in output
    return finished_run / "export"


def test_a_process_without_this_package_loads_it_and_gives_the_same_logits(
    finished_run, export, tmp_path
):
    output = tmp_path / "logits.pt"
    script = [sys.executable, "-c", CLEAN_PROCESS, str(export), str(output)]
    result = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.returncode == 0, result.stderr
    saved = torch.load(output, weights_only=True)

    weights = load_file(finished_run / "checkpoints" / "step-00000003" / "model.safetensors")
    config = NeoBERTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
    )
    ours = NeoBERTForMaskedLM(config).eval()
    ours.load_state_dict(weights)
    with torch.no_grad():
        expected = ours(saved["input_ids"], attention_mask=saved["attention_mask"]).logits
    assert torch.allclose(saved["logits"], expected, atol=1e-5)


def test_the_folder_holds_what_the_hub_needs(export):
    assert {path.name for path in export.iterdir()} == {
        ".neobert_train.json", "README.md", "config.json", "configuration_neobert.py",
        "model.safetensors", "modeling_neobert.py", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    config = json.loads((export / "config.json").read_text())
    assert config["auto_map"]["AutoModelForMaskedLM"] == "modeling_neobert.NeoBERTForMaskedLM"
    card = (export / "README.md").read_text()
    assert "20% of the text tokens, mask_only" in card
    assert "held-out loss" in card
    assert card.startswith("---\nlibrary_name: transformers\n")


def test_a_run_starts_from_an_export_and_from_a_run(export, finished_run):
    model = load_train_config(finished_run / "config.yaml").model
    exported, trained = (
        load_initial_weights(str(origin), model, 30_522) for origin in (export, finished_run)
    )
    assert exported.keys() == trained.keys()
    assert all(torch.equal(exported[name], trained[name]) for name in exported)


def test_another_export_replaces_it_and_what_else_lies_there_stays(finished_run, export):
    (export / ".neobert_train.json").unlink()  # as an earlier version left it
    for name in ("attention.py", "cpu_attention.py", "cross_entropy.py"):
        (export / name).write_text("")
    run_command("export", f"run_dir={finished_run}", "step=2")
    assert not (export / "attention.py").exists()
    assert "in 2 steps" in (export / "README.md").read_text()
    (export / ".git").mkdir()
    (export / ".git" / "config").write_text("of git")
    run_command("export", f"run_dir={finished_run}", "step=3")
    assert "in 3 steps" in (export / "README.md").read_text()
    assert (export / ".git" / "config").read_text() == "of git"
    shutil.rmtree(export / ".git")


def test_a_file_in_the_way_is_named_and_nothing_is_written(finished_run, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    (tmp_path / "README.md").write_text("mine")
    output = run_command("export", f"run_dir={finished_run}", f"output={tmp_path}", code=2)
    assert f"{tmp_path / 'README.md'} is of no export" in output
    assert "thesis" not in output
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "thesis.tex": "precious", "README.md": "mine",
    }  # fmt: skip


def test_a_missing_step_names_those_there_are(finished_run):
    output = run_command("export", f"run_dir={finished_run}", "step=1", code=2)
    assert "has no checkpoint of step 1; there are: 2, 3" in output


def test_an_export_that_computes_something_else_is_not_put_in_place(
    finished_run, tmp_path, monkeypatch
):
    from neobert_train.commands.export import run

    original = parity.AutoModelForMaskedLM.from_pretrained

    def sabotaged(*arguments, **options):
        model = original(*arguments, **options)
        model.model.layer_norm.weight.data.mul_(1.001)
        return model

    monkeypatch.setattr(parity.AutoModelForMaskedLM, "from_pretrained", sabotaged)
    config = ExportConfig(run_dir=str(finished_run), output=str(tmp_path / "export"))
    with pytest.raises(parity.ParityError, match="differ by"):
        run(config, World())
    assert list(tmp_path.iterdir()) == []


def test_only_what_the_export_wrote_is_uploaded(export, monkeypatch):
    """To a Hub that takes the files that `upload_folder` would send."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    class Hub:
        def create_repo(self, repository, private, exist_ok):
            pass

        def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
            names = [str(p.relative_to(folder_path)) for p in folder_path.rglob("*") if p.is_file()]
            return " ".join(sorted(filter_repo_objects(names, allow_patterns=allow_patterns)))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    (export / "private").mkdir()
    for name in ("private/config.json", "secrets.txt"):
        (export / name).write_text("mine")
    uploaded = push_to_hub(export, "org/name", private=True).split()
    assert set(uploaded) == {path.name for path in export.iterdir()} - {"private", "secrets.txt"}
    shutil.rmtree(export / "private")
    (export / "secrets.txt").unlink()


def test_an_upload_that_fails_keeps_the_folder(finished_run, tmp_path):
    output = run_command(
        "export", f"run_dir={finished_run}", f"output={tmp_path / 'out'}", "push_to_hub=nobody/x",
        code=2, HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN="hf_planted-secret",
    )  # fmt: skip
    assert "the export stays in" in output
    assert "planted-secret" not in output
    assert (tmp_path / "out" / "model.safetensors").exists()
