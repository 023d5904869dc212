"""The gradient of the global batch is one number, however the batch is split."""

import functools
import itertools

import numpy as np
import pytest
import torch
from torch._utils import _flatten_dense_tensors

from neobert_train.batch import Batch
from neobert_train.config.derived import compute_num_lanes
from neobert_train.data.lane.collate import collate
from neobert_train.data.lane.lane import initial_states
from neobert_train.data.lane.masking import build_masking
from neobert_train.data.loader import StepLoader
from neobert_train.data.sources import build_units
from neobert_train.models.encoder import measure_size
from neobert_train.models.families import build_encoder
from neobert_train.models.size import compute_reduction_bytes
from neobert_train.objectives.masked_lm import MaskedLM
from neobert_train.optim.optimizers import build_optimizer
from neobert_train.tokenizers.loading import load_tokenizer
from neobert_train.training.engine import Engine
from support.small_vocabulary import build_small_tokenizer, list_small_settings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(build_small_tokenizer()))


@pytest.fixture
def make_config(make_config):
    return functools.partial(make_config, *list_small_settings())


def _one_step_of_batches(config):
    units = build_units(config.data, compute_num_lanes(config))
    loader = StepLoader(config, units, initial_states(range(compute_num_lanes(config))))
    return loader.next_step()


def test_engine_gradient_equals_one_big_float64_batch(make_config, tokenizer, world):
    config = make_config("deepspeed=zero0", "optimizer.max_grad_norm=0.0")
    batches = _one_step_of_batches(config)
    num_targets = sum(batch.num_targets for batch in batches)

    reference = build_encoder(config, tokenizer).network.double()
    total = 0.0
    for batch in batches:
        bounds = batch.cu_seqlens.tolist()
        logits = [
            reference(batch.input_ids[None, start:stop]).logits[0]
            for start, stop in itertools.pairwise(bounds)
        ]
        chosen = torch.cat(logits)[batch.masked_positions]
        total = total + torch.nn.functional.cross_entropy(chosen, batch.labels, reduction="sum")
    (total / num_targets).backward()

    objective = MaskedLM(build_encoder(config, tokenizer))
    engine = Engine(config, objective, world, CPU)
    for batch in batches:
        engine.backward(engine.compute(batch).loss_sum / num_targets)
        if batch is not batches[-1]:
            engine.step()
    network = objective.encoder.network
    for (name, parameter), expected in zip(
        network.named_parameters(), reference.parameters(), strict=True
    ):
        assert torch.allclose(parameter.grad.double(), expected.grad, atol=1e-7), name
    norm = engine.step()
    exact = torch.sqrt(sum((p.grad**2).sum() for p in reference.parameters()))
    assert abs(norm - float(exact)) < 1e-5
    assert engine.read_state(1, keep=False) is None


@pytest.mark.parametrize("zero", ["zero0", "zero1", "zero2"])
def test_an_engine_step_never_waits_for_the_device(
    make_config, tokenizer, world, monkeypatch, zero
):
    """On a GPU each wait would leave it without work."""
    config = make_config(f"deepspeed={zero}")
    engine = Engine(config, MaskedLM(build_encoder(config, tokenizer)), world, CPU)
    from deepspeed.accelerator import get_accelerator

    waits = []
    monkeypatch.setattr(get_accelerator(), "synchronize", lambda *_: waits.append(1))
    for _ in range(3):
        for batch in _one_step_of_batches(config):
            engine.backward(engine.compute(batch).loss_sum / 1000)
            engine.step()
    assert waits == []


@pytest.mark.parametrize(
    ("zero", "precision"), [(z, p) for z in range(4) for p in ("fp32", "bf16")]
)
def test_the_plan_knows_where_all_gradients_are_copied_to_be_summed(
    make_config, tokenizer, world, monkeypatch, zero, precision
):
    config = make_config(f"deepspeed=zero{zero}", f"trainer.precision={precision}")
    objective = MaskedLM(build_encoder(config, tokenizer))
    size = measure_size(objective.encoder)
    engine = Engine(config, objective, world, CPU)
    copied = []

    def flatten(tensors):
        copied.append(4 * sum(tensor.numel() for tensor in tensors))
        return _flatten_dense_tensors(tensors)

    monkeypatch.setattr(engine._deepspeed, "flatten", flatten)
    for batch in _one_step_of_batches(config):
        engine.backward(engine.compute(batch).loss_sum / 1000)
        engine.step()
    expected = compute_reduction_bytes(size, zero, bf16=precision == "bf16")
    assert sum(copied) == pytest.approx(expected, rel=1e-3)


def test_bf16_gradients_are_freed_as_soon_as_they_are_added_up(make_config, tokenizer, world):
    config = make_config("deepspeed=zero1", "trainer.precision=bf16")
    engine = Engine(config, MaskedLM(build_encoder(config, tokenizer)), world, CPU)
    for batch in _one_step_of_batches(config):
        engine.backward(engine.compute(batch).loss_sum / 1000)
        assert all(p.grad is None for p in engine.objective.encoder.network.parameters())
        norm = engine.step()
    assert norm > 0


def test_norms_and_biases_are_not_decayed(make_config, tokenizer):
    config = make_config()
    encoder = build_encoder(config, tokenizer)
    names = {id(parameter): name for name, parameter in encoder.network.named_parameters()}
    weights = dict(encoder.network.named_parameters())
    optimizer = build_optimizer(config.optimizer, weights, encoder.list_roles(), {})
    decayed, free = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0.0
    free_names = {names[id(parameter)] for parameter in free["params"]}
    assert free_names == {n for n in names.values() if "norm" in n or n.endswith("bias")}
    assert len(decayed["params"]) + len(free["params"]) == len(names)


def test_padding_and_document_order_do_not_change_the_sums(make_config, tokenizer):
    config = make_config()
    objective = MaskedLM(build_encoder(config, tokenizer))
    network = objective.encoder.network.double().eval()
    masking = build_masking(config.masking, tokenizer)
    documents = [np.arange(100 + 20 * n, 100 + 21 * n) for n in (5, 30, 9)]
    generator = np.random.Generator(np.random.Philox(key=1))
    batch = Batch.from_arrays(collate(documents, 60, tokenizer.special, masking, 0.2, generator))
    outcome = objective.compute(batch)
    bounds = batch.cu_seqlens.tolist()
    total = 0.0
    for start, stop in reversed(list(itertools.pairwise(bounds))):
        chosen = (batch.masked_positions >= start) & (batch.masked_positions < stop)
        alone = network(
            batch.input_ids[None, start:stop]
        ).logits[0, batch.masked_positions[chosen] - start]  # fmt: skip
        labels = batch.labels[chosen]
        total += torch.nn.functional.cross_entropy(alone, labels, reduction="sum").item()
    assert abs(outcome.loss_sum.item() - total) < 1e-4
    assert 0 <= outcome.sums["accuracy"].item() <= batch.num_targets


@pytest.mark.parametrize("zero", ["zero0", "zero1", "zero2"])
def test_a_role_is_trained_at_its_own_rate(make_config, tokenizer, world, zero):
    config = make_config(f"deepspeed={zero}", "optimizer.embedding.lr_multiplier=0")
    encoder = build_encoder(config, tokenizer)
    before = {name: p.detach().clone() for name, p in encoder.network.named_parameters()}
    engine = Engine(config, MaskedLM(encoder), world, CPU)
    engine.set_learning_rate(1)
    for batch in _one_step_of_batches(config):
        engine.backward(engine.compute(batch).loss_sum / 1000)
        engine.step()
    state = engine.read_state(1, keep=True)
    changed = {name for name, weight in state.weights.items() if not weight.equal(before[name])}
    assert changed == before.keys() - {"model.encoder.weight"}
    # A second engine that continues from this state is at the same place.
    other = Engine(config, MaskedLM(build_encoder(config, tokenizer)), world, CPU)
    other.restore(state)
    again = other.read_state(1, keep=True)
    assert all(again.weights[name].equal(weight) for name, weight in state.weights.items())
    assert all(again.moments[name].equal(moment) for name, moment in state.moments.items())
