"""Networks of transformers in training: stopped, continued, exported and measured like our own."""

import itertools
import json
import re
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from neobert_train.config.derived import compute_num_lanes
from neobert_train.config.saved import load_train_config
from neobert_train.data.heldout import CorpusSample
from neobert_train.data.lane.lane import initial_states
from neobert_train.data.loader import StepLoader
from neobert_train.data.sources import build_units
from neobert_train.models.families import build_encoder
from neobert_train.models.loading import load_initial_weights, load_into
from neobert_train.objectives.masked_lm import MaskedLM
from neobert_train.tokenizers.loading import SHIPPED_TOKENIZER, load_tokenizer
from neobert_train.training.engine import Engine
from neobert_train.training.heldout_sample import build_heldout_batches
from support.architectures import ARCHITECTURES, write_folder
from support.programs import run_command
from support.small_vocabulary import NUM_TOKENS, build_small_tokenizer
from training.runs import (
    MAX_STEPS,
    assert_bit_identical,
    assert_same_run,
    fork,
    read_metrics,
    train_forked,
    train_on_two,
    wait_for_checkpoint,
)

CPU = torch.device("cpu")


def choose(folder, *overrides):
    own = f"tokenizer.path={folder}"  # in place of that of the other runs
    return ["model=hugging_face", f"model.name={folder}", own, *overrides]


def build_engine(config, tokenizer, world, weights, kept=None):
    encoder = build_encoder(config, tokenizer, kept)
    load_into(encoder, weights, "the test")
    encoder.settle_kernels(config.model, CPU, torch.float32)
    return Engine(config, MaskedLM(encoder), world, CPU)


def take_steps(engine, batches_of_steps, first):
    losses = []
    for step, batches in enumerate(batches_of_steps, first):
        engine.set_learning_rate(step)
        for batch in batches:
            loss = engine.compute(batch).loss_sum / 100
            losses.append(loss.item())
            engine.backward(loss)
            engine.step()
    return losses


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_continued_exactly(architecture, make_config, world, tmp_path):
    folder = tmp_path / "model"
    tokenizer = load_tokenizer(str(build_small_tokenizer()))
    write_folder(folder, architecture, tokenizer, vocab_size=NUM_TOKENS)
    config = make_config(*choose(folder, "batch.global_batch_tokens=1024"))
    weights = load_initial_weights("model.name", str(folder), config.model, tokenizer.vocab_size)
    num_lanes = compute_num_lanes(config)
    units = build_units(config.data, num_lanes)
    loader = StepLoader(config, units, initial_states(range(num_lanes)))
    steps = [loader.next_step() for _ in range(4)]

    engine = build_engine(config, tokenizer, world, weights)
    take_steps(engine, steps[:2], 1)
    state, kept = engine.read_state(2, keep=True), engine.objective.encoder.describe_network()
    expected = take_steps(engine, steps[2:], 3)

    shutil.rmtree(folder)  # a run keeps what it needs of the network
    again = build_engine(config, tokenizer, world, state.weights, json.loads(json.dumps(kept)))
    again.restore(state)
    assert take_steps(again, steps[2:], 3) == expected
    final, other = engine.read_state(4, keep=True), again.read_state(4, keep=True)
    assert final.weights.keys() == weights.keys()
    assert all(other.weights[name].equal(weight) for name, weight in final.weights.items())
    assert all(other.moments[name].equal(moment) for name, moment in final.moments.items())
    unchanged = {name for name, weight in final.weights.items() if weight.equal(weights[name])}
    assert unchanged <= {"lm_head.bias"}  # no part of the network in some versions of transformers


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_muon_trains_them_without_zero(make_config, tokenizer, world, tmp_path, precision):
    """ModernBERT, with a parameter that nothing uses, as some networks have them."""
    write_folder(tmp_path, "modernbert", tokenizer)
    settings = ["optimizer=muon", "deepspeed=zero0", f"trainer.precision={precision}"]
    config = make_config(*choose(tmp_path, "batch.global_batch_tokens=1024", *settings))
    encoder = build_encoder(config, tokenizer)
    encoder.network.head.unused = torch.nn.Parameter(torch.ones(3))
    engine = Engine(config, MaskedLM(encoder), world, CPU)
    units = build_units(config.data, compute_num_lanes(config))
    loader = StepLoader(config, units, initial_states(range(compute_num_lanes(config))))
    batches = loader.next_step()
    losses = take_steps(engine, [batches, batches, batches], 1)
    assert sum(losses[-len(batches) :]) < sum(losses[: len(batches)])
    state = engine.read_state(3, keep=True)
    assert state.moments["momentum_buffer.model.layers.0.attn.Wqkv.weight"].any()
    assert not state.moments["exp_avg.head.unused"].any()


def write_small(folder, architecture, **changes):
    """Write a network over the thousand tokens of the other runs."""
    tokenizer = load_tokenizer(str(build_small_tokenizer()))
    special = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    ids = special if architecture == "modernbert" else {}
    write_folder(folder, architecture, tokenizer, vocab_size=NUM_TOKENS, **ids, **changes)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A random BERT, and an uninterrupted run that trains it further."""
    folder = tmp_path_factory.mktemp("bert")
    write_small(folder / "model", "bert")
    output = train_forked(folder / "run", *choose(folder / "model"))
    assert "sdpa attention" in output
    return folder


def test_a_killed_run_continues_exactly(bert, tmp_path):
    settings = choose(bert / "model")
    process = fork(tmp_path / "run", *settings)
    wait_for_checkpoint(tmp_path / "run", 4, process)
    process.kill()
    process.communicate(timeout=300)
    train_forked(tmp_path / "run", *settings)
    assert_bit_identical(tmp_path / "run", bert / "run")


def test_two_processes_with_other_zero_stages_train_the_same(bert, tmp_path):
    train_on_two(tmp_path / "run", *choose(bert / "model"), "deepspeed=zero3")
    assert_same_run(tmp_path / "run", bert / "run", tolerance=1e-5)


def test_rows_are_trained_in_bf16_with_recomputed_activations(tmp_path):
    write_small(tmp_path / "model", "modernbert")
    settings = choose(tmp_path / "model", "trainer.precision=bf16", "optimizer.lr=1e-3")
    output = train_forked(tmp_path / "plain", *settings)
    assert "padded attention" in output
    again = train_forked(
        tmp_path / "run", *settings, "model.activation_checkpointing=true", "trainer.max_steps=4"
    )
    assert "Done: 4 steps" in again
    records, expected = read_metrics(tmp_path / "run"), read_metrics(tmp_path / "plain")
    assert expected[-1]["train/loss"] < expected[0]["train/loss"] - 0.05
    assert [r["train/loss"] for r in records[:2]] == [r["train/loss"] for r in expected[:2]]


def test_rows_in_parts_are_trained_by_two_processes(tmp_path):
    """Their groups of rows are not equally many, and ZeRO 3 gathers weights in every forward pass."""
    write_small(tmp_path / "model", "modernbert")
    lines = [" ".join(["the state of the union"] * (1 + number % 23)) for number in range(400)]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    data = ["data=files", f"data.paths=[{tmp_path / 'lines.txt'}]", "data.text_documents=line"]
    settings = choose(tmp_path / "model", *data, "data.heldout_fraction=0.1")
    train_forked(tmp_path / "alone", *settings)
    train_on_two(tmp_path / "run", *settings, "deepspeed=zero3")
    assert_same_run(tmp_path / "run", tmp_path / "alone", tolerance=1e-5)


def test_packed_documents_are_trained_with_recomputed_activations(bert, tmp_path):
    train_forked(tmp_path / "run", *choose(bert / "model"), "model.activation_checkpointing=true")
    assert_same_run(tmp_path / "run", bert / "run", tolerance=1e-6)


def test_training_lowers_the_heldout_loss_that_an_export_gives(bert):
    """In plain transformers, on the same masks."""
    run_dir, start = bert / "run", bert / "model"
    output = run_command("export", f"run_dir={run_dir}")
    assert "exported step 8" in output
    config = load_train_config(run_dir / "config.yaml")
    card = (run_dir / "export" / "README.md").read_text()
    assert "trust_remote_code" not in card
    assert "architecture and initial weights of model" in card
    losses = [
        compute_heldout_loss(folder, run_dir, config) for folder in (start, run_dir / "export")
    ]
    assert losses[1] < losses[0] - 0.1
    measured = read_metrics(run_dir)[-1]["eval/masked_lm_loss"]
    assert losses[1] == pytest.approx(measured, abs=1e-4)
    evaluated = run_command("evaluate", f"run_dir={run_dir}")
    # Other draws of masks than those of the run.
    assert float(re.search(r"loss +([0-9.]+) nats", evaluated)[1]) == pytest.approx(
        measured, abs=0.1
    )
    texts = run_dir.parent / "texts.txt"
    texts.write_text("The state of the union is strong.\n\nAnd it will be so tomorrow.\n")
    assert "masked_lm loss" in run_command(
        "evaluate", f"model={run_dir / 'export'}", f"paths=[{texts}]"
    )
    weights = load_file(run_dir / "export" / "model.safetensors")
    assert "cls.predictions.decoder.weight" not in weights  # tied, as transformers writes it


def compute_heldout_loss(folder, run_dir, config):
    tokenizer = load_tokenizer(str(folder))
    sample = CorpusSample.load(run_dir / "heldout.json", tokenizer.vocab_size)
    network = AutoModelForMaskedLM.from_pretrained(folder).eval()
    total, num_targets = 0.0, 0
    for batch in build_heldout_batches(config, sample, tokenizer):
        targets = torch.full_like(batch.input_ids, -100)
        targets[batch.masked_positions] = batch.labels
        for begin, end in itertools.pairwise(batch.cu_seqlens.tolist()):
            with torch.no_grad():
                scores = network(batch.input_ids[None, begin:end]).logits[0]
            total += F.cross_entropy(scores, targets[begin:end], reduction="sum").item()
        num_targets += batch.num_targets
    return total / num_targets


def test_a_run_of_another_model_is_not_continued(bert, tmp_path):
    write_small(tmp_path / "model", "distilbert")
    output = train_forked(bert / "run", *choose(tmp_path / "model"), code=2)
    assert "holds another run" in output
    assert "model.name" in output
    output = train_forked(bert / "run", code=2)
    assert "model.kind: hugging_face -> neobert" in output


def test_changed_settings_do_not_make_it_another_network(bert, tmp_path):
    shutil.copytree(bert / "run", tmp_path / "run")
    write_small(tmp_path / "model", "roberta", pad_token_id=0)
    settings = choose(tmp_path / "model", "resume=changed")
    output = train_forked(tmp_path / "run", *settings, code=2)
    assert "model.safetensors has " in output
    # The same model in another folder is the same network.
    shutil.copytree(bert / "model", tmp_path / "moved")
    output = train_forked(tmp_path / "run", *choose(tmp_path / "moved", "resume=changed"))
    assert "is complete after 8 steps" in output


def test_a_run_continues_without_the_folder_that_it_came_from(bert, tmp_path):
    for name in ("model", "run"):
        shutil.copytree(bert / name, tmp_path / name)
    settings = choose(tmp_path / "model", "trainer.max_steps=9", "resume=changed")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    train_forked(tmp_path / "run", *settings)
    shutil.rmtree(tmp_path / "model")
    output = train_forked(tmp_path / "run", *choose(tmp_path / "model"), "trainer.max_steps=10")
    assert "continuing with the tokenizer in" in output
    assert "Done: 10 steps" in output


def test_weights_are_trained_with_their_own_tokenizer(bert, tmp_path):
    output = train_forked(
        tmp_path / "run", *choose(bert / "model"), f"tokenizer.path={write_words(tmp_path)}", code=2
    )
    assert "gives other ids than the tokenizer of model.name=" in output


def write_words(folder):
    """A tokenizer with some of BERT's entries under other ids."""
    content = json.loads((SHIPPED_TOKENIZER / "tokenizer.json").read_text())
    kept = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)[:2000]
    content["model"]["vocab"] = {token: index for index, token in enumerate(kept)}
    (folder / "words").mkdir()
    (folder / "words" / "tokenizer.json").write_text(json.dumps(content))
    return folder / "words"


def test_a_run_of_another_kind_gives_no_weights(bert, tmp_path):
    output = train_forked(tmp_path / "run", f"init_from={bert / 'run'}", code=2)
    assert "is a run with model.kind=hugging_face" in output


def test_random_weights_start_another_run_with_init_from(bert, tmp_path):
    output = train_forked(
        tmp_path / "run",
        *choose(bert / "model"),
        f"init_from={bert / 'run'}",
        "trainer.max_steps=2",
    )
    assert "Done: 2 steps" in output
    first, last = read_metrics(tmp_path / "run")[0], read_metrics(bert / "run")[0]
    assert first["train/loss"] < last["train/loss"] - 0.1
    assert MAX_STEPS == 8
