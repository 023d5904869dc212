"""Embedders of several architectures: they learn, continue exactly, and load where this package is not."""

import json
import shutil
import subprocess

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from neobert_train.errors import InputError
from neobert_train.models.exported import register_neobert
from neobert_train.run.metrics_file import read_metrics
from neobert_train.tuning import embedding, embedding_trainer
from neobert_train.tuning.embedding_trainer import DivergedError
from support.architectures import ARCHITECTURES, write_folder
from support.pairs import make_rows, write_rows
from support.programs import find_python
from support.small_vocabulary import NUM_TOKENS

TEXTS = ["river stone quiet harbour", "a castle and a violin in the garden", "copper"]
CLEAN_PROCESS = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "neobert_train":
            raise ImportError("not here")

sys.meta_path.insert(0, Refuse())
import json
from sentence_transformers import SentenceTransformer
texts, *folders = json.loads(sys.argv[1])
found = {}
for folder in folders:
    model = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    found[folder] = {
        "vectors": model.encode(texts).tolist(),
        "query": model.encode_query(texts).tolist(),
        "prompts": model.prompts,
        "length": model.max_seq_length,
        "module": type(model[0].auto_model).__module__,
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def encoders(tmp_path_factory, tokenizer, neobert):
    """Folders of random encoders by architecture."""
    folder = tmp_path_factory.mktemp("encoders")
    for architecture in {"bert", "modernbert", "nomic_bert"} & set(ARCHITECTURES):
        write_folder(folder / architecture, architecture, tokenizer, vocab_size=NUM_TOKENS)
    return {"neobert": neobert, **{path.name: path for path in folder.iterdir()}}


def load_weights(folder):
    return load_file(folder / "model.safetensors")


def measure(model, rows):
    """The share of anchors whose nearest text is their positive, among all positives and negatives."""
    texts = [row["positive"] for row in rows] + [row["negative"] for row in rows]
    anchors = torch.tensor(model.encode([row["anchor"] for row in rows]))
    scores = model.similarity(anchors, torch.tensor(model.encode(texts)))
    return float((scores.argmax(1) == torch.arange(len(rows))).float().mean())


def test_every_architecture_is_trained_and_loads_without_this_package(
    train, encoders, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("trained")
    prompts = ("query_prompt='query: '", "document_prompt='passage: '", "max_length=40")
    chosen = [name for name in encoders if name != "bert"]
    for name in chosen:
        result = train(encoders[name], folder / name, "max_steps=2", *prompts)
        assert result.steps == 2, name
    arguments = json.dumps([TEXTS, *(str(folder / name) for name in chosen)])
    done = subprocess.run(
        [find_python(), "-c", CLEAN_PROCESS, arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    register_neobert()
    for name in chosen:
        loaded = found[str(folder / name)]
        assert loaded["prompts"] == {"query": "query: ", "document": "passage: "}
        assert loaded["length"] == 40
        assert ("transformers_modules" in loaded["module"]) is (name == "neobert")
        here = SentenceTransformer(str(folder / name), device="cpu")
        for key, vectors in (
            ("vectors", here.encode(TEXTS)),
            ("query", here.encode([f"query: {text}" for text in TEXTS])),
        ):
            difference = torch.tensor(loaded[key]) - torch.tensor(vectors)
            assert difference.abs().max() < 1e-5, name


def test_a_stopped_training_ends_with_the_same_weights(train, encoders, tmp_path):
    encoder = encoders["bert"]  # BERT has dropout, and a pooler that starts at random
    train(encoder, tmp_path / "whole")
    undisturbed = list(train.records)
    for stop_after in (2, 1, 2):  # within a pass, at its end, and within the next one
        assert train(encoder, tmp_path / "part", stop_after=stop_after) is None
    (checkpoint,) = (tmp_path / "part" / "checkpoints").iterdir()
    assert checkpoint.name == "step-00000005"
    assert {path.suffix for path in checkpoint.rglob("*") if path.is_file()} <= {
        ".safetensors", ".json", ".py",
    }  # fmt: skip
    assert train(encoder, tmp_path / "part").steps == 9
    whole, part = load_weights(tmp_path / "whole"), load_weights(tmp_path / "part")
    assert whole.keys() == part.keys()
    assert all(torch.equal(whole[name], part[name]) for name in whole)
    kept = list(read_metrics(tmp_path / "part" / "metrics.jsonl"))
    assert [(r["step"], r["loss"]) for r in kept] == [(r["step"], r["loss"]) for r in undisturbed]


def test_metrics_of_a_training_that_broke_off_are_those_of_an_undisturbed_one(
    train, encoders, tmp_path
):
    often = ("log_every_steps=4", "save_every_steps=3")
    train(encoders["neobert"], tmp_path / "whole", *often)
    with pytest.raises(ZeroDivisionError):
        train(encoders["neobert"], tmp_path / "part", *often, fail_after=8)
    assert train(encoders["neobert"], tmp_path / "part", *often).steps == 9
    metrics = [
        [
            {key: value for key, value in record.items() if key != "rows_per_second"}
            for record in read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "part")
    ]
    assert metrics[0] == metrics[1]
    assert [record["step"] for record in metrics[0]] == [1, 3, 4, 6, 8, 9]


def test_it_learns_and_the_folder_says_how(train, encoders, tmp_path):
    output = tmp_path / "my embedder"
    result = train(encoders["neobert"], output, "max_steps=30", "temperature=0.1", "lr=3e-3")
    rows = make_rows(40, seed=1)
    register_neobert()
    before = SentenceTransformer(str(encoders["neobert"]), device="cpu")
    after = SentenceTransformer(str(output), device="cpu")
    assert measure(after, rows) > measure(before, rows) + 0.2
    assert train.records[-1]["loss"] < 0.5 * train.records[0]["loss"]
    assert result.loss == train.records[-1]["loss"]
    assert {path.name for path in output.iterdir()} == {
        ".lock", ".neobert_train.json", "1_Pooling", "README.md", "config.json",
        "config_sentence_transformers.json", "configuration_neobert.py", "embedding.yaml",
        "metrics.jsonl", "model.safetensors", "modeling_neobert.py", "modules.json", "result.json",
        "sentence_bert_config.json", "start.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert (output / "model.safetensors").stat().st_mode & 0o044 == 0o044
    card = (output / "README.md").read_text()
    for expected in (
        "library_name: sentence-transformers",
        "# my embedder",
        "| pairs | 48 | pairs.jsonl | yes |",
        "temperature 0.1",
        "| steps | 30 (480 rows, with repetitions) |",
        f'SentenceTransformer("{output}", trust_remote_code=True)',
    ):
        assert expected in card


def test_several_sets_are_trained_on_together(train, encoders, tmp_path):
    file = write_rows(tmp_path / "other.jsonl", make_rows(20, seed=2))
    config = train.compose(encoders["neobert"], tmp_path / "x")
    sets = [f"datasets.first.paths={config.paths}", "datasets.first.negatives=[negative]"]
    sets += [f"datasets.second.paths=[{file}]", "datasets.second.anchor_prompt='ask: '"]
    result = train(
        encoders["neobert"], tmp_path / "out", "paths=[]", "negatives=[]", *sets, "max_steps=4"
    )
    assert result.steps == 4
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| first | 48 | pairs.jsonl | yes |" in card
    assert "| second | 20 | other.jsonl | no |" in card


def test_other_settings_and_other_texts_do_not_continue_a_training(
    train, encoders, tmp_path, pairs
):
    output, encoder = tmp_path / "out", encoders["neobert"]
    assert train(encoder, output, "save_every_steps=2", stop_after=2) is None
    with pytest.raises(InputError) as error:
        train(encoder, output, "lr=2e-3", "negatives=[]", "query_prompt=ask")
    assert str(error.value).splitlines()[1:] == [
        "  negatives: [negative] -> [] (write negatives=[negative])",
        '  query_prompt:  -> ask (write query_prompt="")',
        "  lr: 0.001 -> 0.002 (write lr=0.001)",
    ]
    text = pairs.read_text()
    try:
        pairs.write_text(text.replace("river", "brook"))
        with pytest.raises(InputError, match="texts of pairs are not those"):
            train(encoder, output)
    finally:
        pairs.write_text(text)
    assert train(encoder, output, "mini_batch_size=16", "save_every_steps=5").steps == 9


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["max_length=65"], "max_length=65 exceeds what model=.* takes: write max_length=64"),
        (["step=3"], "step=3 belongs to a run directory"),
    ],
)
def test_what_a_model_cannot_do_is_refused_before_anything_is_written(
    train, encoders, tmp_path, overrides, expected
):
    with pytest.raises(InputError, match=expected):
        train(encoders["neobert"], tmp_path / "out", *overrides)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_tokenizer_and_one_of_others_are_refused(train, encoders, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((encoders["bert"] / name).read_bytes())
    with pytest.raises(InputError, match=r"model=.*bare has no tokenizer"):
        train(bare, tmp_path / "out")
    with pytest.raises(InputError, match="holds other things than an embedder, such as config"):
        train(encoders["bert"], bare)


def test_a_loss_that_is_no_number_ends_the_training(train, encoders, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(encoders["neobert"], broken)
    weights = load_weights(broken)
    weights["model.layer_norm.weight"][0] = torch.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(DivergedError, match="the loss of step 1 is nan: lower lr"):
        train(broken, tmp_path / "out")


@pytest.mark.parametrize(
    ("place", "error", "expected"),
    [
        (
            "save_optimizer",
            SafetensorError("No space left on device"),
            "cannot be written .No space",
        ),
        ("save_optimizer", OSError(28, "No space left"), "make room or fix its permissions"),
        ("save_random_states", torch.OutOfMemoryError(), "write mini_batch_size=3, which changes"),
    ],
)
def test_what_the_machine_lacks_is_told_with_what_to_do(
    train, encoders, tmp_path, monkeypatch, place, error, expected
):
    def fail(*arguments):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(embedding_trainer, place, fail)
        with pytest.raises(InputError, match=expected):
            train(encoders["neobert"], tmp_path / "out", "max_steps=1")
    if isinstance(error, OSError):
        assert train(encoders["neobert"], tmp_path / "out", "max_steps=1").steps == 1


def test_a_training_that_ended_before_its_model_was_written_is_not_trained_on(
    train, encoders, tmp_path, monkeypatch
):
    def fail(*arguments):
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(embedding, "_write_result", fail)
        with pytest.raises(ZeroDivisionError):
            train(encoders["neobert"], tmp_path / "out", "max_steps=2")
    assert [record["step"] for record in train.records] == [1, 2]
    kept = load_weights(tmp_path / "out" / "checkpoints" / "step-00000002")
    result = train(encoders["neobert"], tmp_path / "out", "max_steps=2")
    assert [record["step"] for record in train.records] == [1, 2]
    assert result.loss == train.records[-1]["loss"]
    written = load_weights(tmp_path / "out")
    assert all(torch.equal(kept[name], written[name]) for name in kept)
