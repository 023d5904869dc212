"""`embed` as a user runs it: from a run, killed, stopped, twice at once, and with what is wrong."""

import json
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from neobert_train.config.checks import find_problems
from neobert_train.models.exported import register_neobert
from support.configs import compose
from support.pairs import make_rows, write_neobert, write_rows
from support.programs import Forked, finish, run_command

STEPS = ["batch_size=16", "lr=1e-3", "precision=fp32", "log_every_steps=1", "epochs=20"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", make_rows(32))


@pytest.fixture(scope="module")
def neobert(tmp_path_factory, tokenizer):
    return write_neobert(tmp_path_factory.mktemp("exported") / "neobert", tokenizer)


def list_arguments(model, pairs, output, *others):
    settings = [f"model={model}", f"paths=[{pairs}]", f"output={output}"]
    return ["embed", *settings, *STEPS, *others]


def wait_for(condition, program, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert program.poll() is None, program.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read_steps(output):
    file = output / "metrics.jsonl"
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


def load_weights(output):
    return load_file(output / "model.safetensors")


def test_a_run_becomes_an_embedder(finished_run, pairs, tmp_path):
    output = tmp_path / "embedder"
    arguments = list_arguments(finished_run, pairs, output, "max_steps=2", "pooling=cls")
    shown = run_command(*arguments)
    assert "step 2/2  loss " in shown
    assert " rows/s  0:00 left" in shown
    assert f"model     {output}" in shown
    register_neobert()
    model = SentenceTransformer(str(output), device="cpu")
    assert model[1].pooling_mode == "cls"
    trained = load_file(finished_run / "checkpoints" / "step-00000003" / "model.safetensors")
    moved = load_weights(output)["encoder.weight"] - trained["model.encoder.weight"]
    assert 0 < moved.abs().max() < 0.01  # two steps away from the weights of the run
    card = (output / "README.md").read_text()
    assert "from run, step 3." in card
    assert "is complete after 2 steps" in run_command(*arguments)
    said = run_command(*arguments, "lr=1e-4", code=2)
    assert "lr: 0.001 -> 0.0001 (write lr=0.001)" in said


def test_a_killed_and_a_stopped_training_end_as_an_undisturbed_one(neobert, pairs, tmp_path):
    others = ["save_every_steps=5"]
    undisturbed = list_arguments(neobert, pairs, tmp_path / "undisturbed", *others)
    run_command(*undisturbed)
    output = tmp_path / "disturbed"
    arguments = list_arguments(neobert, pairs, output, *others)

    killed = Forked("neobert_train", *arguments)
    wait_for(lambda: (output / "checkpoints" / "step-00000005").exists(), killed)
    wait_for(lambda: read_steps(output)[-1] > 7, killed)
    killed.kill()
    killed.wait(60)
    assert not (output / "model.safetensors").exists()

    stopped = Forked("neobert_train", *arguments)
    wait_for(lambda: read_steps(output)[-1:] > [12], stopped)
    # Meanwhile nobody else may write there.
    stopped.send_signal(signal.SIGSTOP)
    said = run_command(*arguments, code=2)
    assert f"writes in {output}: stop it, or write output=..." in said
    stopped.send_signal(signal.SIGCONT)
    stopped.send_signal(signal.SIGTERM)
    shown = finish(stopped, code=3)
    step = int(shown.split("with the checkpoint of step ")[1].split(";")[0])
    assert "stopped by SIGTERM" in shown
    assert "the same command continues" in shown
    assert [path.name for path in (output / "checkpoints").iterdir()] == [f"step-{step:08d}"]

    assert f"training from step {step} to 40" in run_command(*arguments)
    assert read_steps(output) == list(range(1, 41))
    assert not (output / "checkpoints").exists()
    whole, other = load_weights(tmp_path / "undisturbed"), load_weights(output)
    assert all(torch.equal(whole[name], other[name]) for name in whole)
    pickles = [path for path in output.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert pickles == []


def test_what_is_wrong_is_told_with_exit_code_2_and_leaves_nothing(neobert, pairs, tmp_path):
    output = tmp_path / "out"
    arguments = list_arguments(neobert, pairs, output)
    for change, expected in (
        ("anchor=question", "pairs.jsonl, line 1: there is no column 'question' (anchor)"),
        ("model=/no/such/folder", "is neither a folder nor a model on the Hub"),
    ):
        said = run_command(*arguments, change, code=2, HF_HUB_OFFLINE="1")
        assert expected in said
        assert "Traceback" not in said
    assert not output.exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["paths=[]"], "there is no data: write paths=[pairs.jsonl]"),
        (["dataset=org/set"], "give either paths=[pairs.jsonl] or dataset=org/name, and not both"),
        (["negatives=[anchor]"], "the column 'anchor' is given twice"),
        (["score=score"], "write score=COLUMN and min_score=NUMBER together"),
        (["num_negatives=2"], "num_negatives is set without columns"),
        (["subset=x"], "subset belongs to dataset=org/name"),
        (["pooling=none"], "pooling=none gives no vector"),
        (["betas=[0.9]"], "betas=[0.9] must be two numbers"),
        (["batch_size=1"], "batch_size=1 is out of range: it must be at least 2"),
        (["temperature=0"], "temperature=0.0 is out of range: it must be above 0"),
        (["preset=neobert"], "stands beside datasets: write datasets.mine.paths=..."),
        (["output="], "output is not set"),
        (["model="], "model is not set"),
    ],
)
def test_settings_that_do_not_fit_are_told_with_what_to_write(settings, expected):
    base = ["model=m", "output=o", "paths=[pairs.jsonl]"]
    problems = find_problems(compose("embed", *base, *settings))
    assert any(expected in problem for problem in problems), problems


def test_one_process_trains():
    config = compose("embed", "model=m", "output=o", "paths=[pairs.jsonl]")
    assert find_problems(config) == []
    assert "launch one" in find_problems(config, world_size=2)[0]


@pytest.mark.parametrize("preset", ["msmarco", "neobert"])
def test_presets_compose_and_every_value_can_be_changed(preset):
    config = compose("embed", f"preset={preset}", "model=m", "output=o", "lr=3e-5")
    assert config.preset == preset
    assert config.lr == 3e-5
    assert find_problems(config) == []


def test_the_presets_hold_the_numbers_of_their_sources():
    neobert, msmarco = (compose("embed", f"preset={name}") for name in ("neobert", "msmarco"))
    assert (neobert.max_steps, neobert.temperature) == (2000, 0.07)
    assert neobert.sampling_exponent == 0.5
    assert len(neobert.datasets) == 17
    assert (msmarco.batch_size, msmarco.mini_batch_size, msmarco.epochs) == (512, 16, 1)
    assert (msmarco.lr, msmarco.warmup_fraction, msmarco.max_rows) == (8e-5, 0.05, 1_250_000)
    changed = compose(
        "embed", "preset=neobert", "datasets.gooaq.max_rows=10", "datasets.mine.paths=[x]"
    )
    assert changed.datasets["gooaq"].max_rows == 10
    assert changed.datasets["gooaq"].anchor == "question"
    assert changed.datasets["mine"].paths == ["x"]


def test_a_missing_package_is_told_before_anything_is_done(monkeypatch, tmp_path):
    from neobert_train.commands.embed import run
    from neobert_train.errors import InputError
    from neobert_train.world import World

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    output = tmp_path / "out"
    with pytest.raises(InputError, match="make install"):
        run(compose("embed", "model=m", f"output={output}", "paths=[x]"), World())
    assert not output.exists()
