"""An export is loaded by transformers alone and computes what was trained."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from neobert_train.commands.export import run
from neobert_train.config.command_schema import ExportConfig
from neobert_train.config.saved import load_train_config
from neobert_train.export.parity import ParityError
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.models import remote_code
from neobert_train.models.loading import load_initial_weights
from neobert_train.world import World
from support.local_hub import LocalHub
from support.programs import find_python, run_anew, run_command

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
    output = run_anew("export", f"run_dir={finished_run}")
    assert "exported step 3" in output
    return finished_run / "export"


def test_a_process_without_this_package_loads_it_and_gives_the_same_logits(
    finished_run, export, tmp_path
):
    output = tmp_path / "logits.pt"
    script = [sys.executable, "-c", CLEAN_PROCESS, str(export), str(output)]
    result = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path, timeout=300)
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
        load_initial_weights("init_from", str(origin), model, 30_522)
        for origin in (export, finished_run)
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


@pytest.mark.parametrize(
    ("mark", "kind"),
    [
        ("config.yaml", "a training run"),
        ("embedding.yaml", "an embedder"),
        ("cells", "an evaluation"),
    ],
)
def test_folders_of_other_commands_are_refused(finished_run, tmp_path, mark, kind):
    (tmp_path / mark).mkdir()
    output = run_command("export", f"run_dir={finished_run}", f"output={tmp_path}", code=2)
    assert f"{tmp_path} holds {kind}: write output=..." in output
    assert [path.name for path in tmp_path.iterdir()] == [mark]


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("ROPE_THETA = 10_000.0", "ROPE_THETA = 9_000.0"), "differ by"),
        (("import math\n", "import math\nimport xformers.ops\n"), "does not load.*xformers"),
    ],
)
def test_an_export_that_is_not_what_was_trained_is_not_put_in_place(
    finished_run, tmp_path, monkeypatch, change, words
):
    joined = remote_code.join_modules()
    assert change[0] in joined
    monkeypatch.setattr(remote_code, "join_modules", lambda: joined.replace(*change))
    monkeypatch.setattr(sys, "executable", find_python())
    config = ExportConfig(run_dir=str(finished_run), output=str(tmp_path / "export"))
    with pytest.raises(ParityError, match=f"(?s){words}"):
        run(config, World())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def full_export(finished_run, tmp_path_factory):
    """With everything that an export can have."""
    folder = tmp_path_factory.mktemp("full") / "model"
    run_command(
        "export", f"run_dir={finished_run}", f"output={folder}", "format=onnx", "pooling=mean",
        "license=apache-2.0",
    )  # fmt: skip
    return folder


def test_the_card_is_named_after_the_run_and_its_examples_run(full_export, finished_run):
    card = (full_export / "README.md").read_text()
    assert f"\n# {finished_run.name}\n" in card
    assert "license: apache-2.0" in card.split("---")[1]
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 4
    script = "\n".join(blocks)
    assert str(full_export) in script
    done = subprocess.run([find_python(), "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_texts_are_embedded_alike_by_all_that_can(full_export):
    import onnxruntime
    from sentence_transformers import SentenceTransformer

    texts = ["peace and work", "a much longer text about the state of the union"]
    tokenizer = AutoTokenizer.from_pretrained(full_export, trust_remote_code=True)
    assert tokenizer.model_max_length == 128  # the context of the run
    inputs = tokenizer(texts, padding=True, return_tensors="np")
    session = onnxruntime.InferenceSession(str(full_export / "onnx" / "model.onnx"))
    names = ("input_ids", "attention_mask")
    (hidden,) = session.run(None, {name: inputs[name] for name in names})
    expected = hidden.sum(1) / inputs["attention_mask"].sum(1, keepdims=True)
    model = SentenceTransformer(str(full_export), trust_remote_code=True, device="cpu")
    assert model.max_seq_length == 128
    assert np.allclose(model.encode(texts), expected, atol=1e-4)


def test_ids_of_special_tokens_stand_in_the_configuration(export):
    config = json.loads((export / "config.json").read_text())
    names = ("pad", "cls", "sep", "mask")
    assert [config[f"{name}_token_id"] for name in names] == [0, 101, 102, 103]


def test_the_class_of_the_tokenizer_stands_in_the_configuration(export):
    """Where pipelines of transformers 4 look for it; they leave the tokenizer out otherwise."""
    config, settings = (
        json.loads((export / name).read_text()) for name in ("config.json", "tokenizer_config.json")
    )
    assert config["tokenizer_class"] == settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_sparse_encoders_are_built_on_the_vocabulary(export):
    from sentence_transformers import SparseEncoder

    encoder = SparseEncoder(str(export), trust_remote_code=True, device="cpu")
    assert encoder.encode(["peace and work"]).shape == (1, 30522)


@pytest.mark.parametrize("target", [["qkv", "wo"], "all-linear"])
def test_what_peft_saves_of_a_classifier_is_all_that_was_trained(export, tmp_path, target):
    from peft import LoraConfig, PeftModel, get_peft_model

    def build():
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_pretrained(
            export, num_labels=3, trust_remote_code=True
        )

    adapted = get_peft_model(build(), LoraConfig(task_type="SEQ_CLS", target_modules=target))
    ids, labels = torch.randint(1000, 9000, (4, 12)), torch.tensor([0, 2, 1, 0])
    optimizer = torch.optim.SGD((p for p in adapted.parameters() if p.requires_grad), lr=0.5)
    for _ in range(3):
        adapted(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    adapted.save_pretrained(tmp_path)
    fresh = build()
    torch.nn.init.zeros_(fresh.dense.weight)  # another random head
    again = PeftModel.from_pretrained(fresh, tmp_path)
    one, other = (model.eval()(input_ids=ids).logits for model in (adapted, again))
    assert one.equal(other)


def test_an_upload_that_fails_keeps_the_folder(finished_run, tmp_path):
    output = run_command(
        "export", f"run_dir={finished_run}", f"output={tmp_path / 'out'}", "push_to_hub=nobody/x",
        code=2, HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN="hf_planted-secret",
    )  # fmt: skip
    assert "the upload to nobody/x failed: the Hub cannot be reached (ConnectError" in output
    assert f"the export stays in {tmp_path / 'out'}" in output
    assert "planted-secret" not in output
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_checkpoint_is_uploaded_as_a_branch_and_read_from_there(finished_run, tmp_path):
    with LocalHub() as hub:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("mine")
        environment = hub.environment(tmp_path / "home")
        arguments = [
            "export", f"run_dir={finished_run}", "step=2", f"output={tmp_path / 'out'}",
            "push_to_hub=org/name", "revision=step-00000002", "private=true",
        ]  # fmt: skip
        assert f"uploaded to {hub.url}/org/name" in run_command(*arguments, **environment)
        files = hub.read("org/name", "step-00000002")
        assert files.keys() - {".gitattributes"} == {
            path.name for path in (tmp_path / "out").iterdir() if path.name != "notes.txt"
        }
        assert b'"org/name", revision="step-00000002"' in files["README.md"]
        assert hub.read("org/name").keys() == {".gitattributes"}
        assert hub.repositories["models/org/name"].is_private
        assert hub.titles("org/name", "step-00000002")[0] == "Step 2 of a run of neobert_train"
        (tmp_path / "texts.jsonl").write_text('{"content": "the state of the union"}\n' * 9)
        measured = run_command(
            "evaluate", "model=org/name@step-00000002", f"paths=[{tmp_path / 'texts.jsonl'}]",
            **environment,
        )  # fmt: skip
        assert measured.startswith("org/name@step-00000002: ")
