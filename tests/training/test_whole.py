"""Training without ZeRO: fp32 weights beside the bf16 copies that the network computes with."""

import math

import pytest
import torch

from neobert_train.config.derived import compute_num_lanes
from neobert_train.data.lane.lane import initial_states
from neobert_train.data.loader import StepLoader
from neobert_train.data.sources import build_units
from neobert_train.models.families import build_encoder
from neobert_train.objectives.masked_lm import MaskedLM
from neobert_train.training import whole
from neobert_train.training.engine import Engine

CPU = torch.device("cpu")
SETTINGS = (
    "deepspeed=zero0", "trainer.precision=bf16", "batch.global_batch_tokens=1024",
    "batch.micro_batch_tokens=256", "masking.rate=0.05",
)  # fmt: skip
KINDS = ["adamw", "muon", "normuon"]


@pytest.fixture
def make_engine(make_config, tokenizer, world):
    def make(*overrides):
        config = make_config(*SETTINGS, *overrides)
        return Engine(config, MaskedLM(build_encoder(config, tokenizer)), world, CPU)

    return make


@pytest.fixture
def steps(make_config):
    """The micro-batches of two steps."""
    config = make_config(*SETTINGS)
    num_lanes = compute_num_lanes(config)
    loader = StepLoader(
        config, build_units(config.data, num_lanes), initial_states(range(num_lanes))
    )
    return [loader.next_step() for _ in range(2)]


def take_step(engine, number, batches, factor=1e-3):
    engine.set_learning_rate(number)
    for batch in batches:
        engine.backward(engine.compute(batch).loss_sum * factor)
        norm = engine.step()
    return norm


def read(engine, updates):
    state = engine.read_state(updates, keep=True)
    return state.weights | state.moments


def get_parameters(engine):
    return dict(engine.objective.encoder.network.named_parameters())


def test_gradients_of_bf16_are_added_up_in_fp32(make_config, make_engine, tokenizer, steps):
    engine = make_engine("optimizer.max_grad_norm=0", "optimizer.betas=[0.5,0.5]")
    reference = MaskedLM(build_encoder(make_config(*SETTINGS), tokenizer))
    network = reference.encoder.network.bfloat16()
    sums = {name: torch.zeros(p.shape) for name, p in network.named_parameters()}
    for batch in steps[0]:
        network.zero_grad()
        (reference.compute(batch).loss_sum * 1e-3).backward()
        for name, parameter in network.named_parameters():
            sums[name] += parameter.grad
    norm = take_step(engine, 1, steps[0])
    moments = engine.read_state(1, keep=True).moments
    for name, expected in sums.items():
        assert moments[f"exp_avg.{name}"].equal(0.5 * expected), name
    assert norm == pytest.approx(math.sqrt(sum(s.double().square().sum() for s in sums.values())))


def test_gradients_of_bf16_are_averaged_over_processes(make_engine, steps, monkeypatch):
    """With another process that has the same batches, one gets what one gets alone."""
    alone, beside = make_engine(), make_engine()
    norm = take_step(alone, 1, steps[0])
    monkeypatch.setattr(whole.dist, "all_reduce", lambda tensor: tensor.mul_(2))
    monkeypatch.setattr(whole.dist, "get_world_size", lambda: 2)
    assert take_step(beside, 1, steps[0]) == norm
    expected, found = read(alone, 1), read(beside, 1)
    assert all(found[name].equal(expected[name]) for name in expected)


def test_the_network_computes_with_roundings_of_the_weights(make_engine, steps):
    engine = make_engine()
    before = read(engine, 0)
    assert all(p.dtype is torch.bfloat16 for p in get_parameters(engine).values())
    take_step(engine, 1, steps[0])
    weights = read(engine, 1)
    for name, parameter in get_parameters(engine).items():
        assert weights[name].dtype is torch.float32
        assert not weights[name].equal(before[name])
        assert parameter.equal(weights[name].bfloat16())
    table = weights["model.encoder.weight"]
    assert not table.equal(table.bfloat16().float())  # as if they had been rounded


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_restored_bit_for_bit(make_engine, steps, kind):
    engine, other = (make_engine(f"optimizer={kind}") for _ in range(2))
    take_step(engine, 1, steps[0])
    other.restore(engine.read_state(1, keep=True))
    for one in (engine, other):
        take_step(one, 2, steps[1])
    expected, found = read(engine, 2), read(other, 2)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not found[name].equal(expected[name])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_not_finite_changes_nothing_that_follows(make_engine, steps, kind):
    engine, other = (make_engine(f"optimizer={kind}") for _ in range(2))
    for one in (engine, other):
        take_step(one, 1, steps[0])
    before = read(engine, 1)
    assert not math.isfinite(take_step(engine, 2, steps[1], math.nan))
    after = read(engine, 1)
    assert all(after[name].equal(before[name]) for name in before)
    for one in (engine, other):
        take_step(one, 2, steps[1])
    expected, found = read(other, 2), read(engine, 2)
    assert all(found[name].equal(expected[name]) for name in expected)


def test_the_raw_gradient_is_clipped_before_the_momentum(make_engine, steps):
    free, clipped = (
        make_engine("optimizer=muon", f"optimizer.max_grad_norm={norm}") for norm in (0, 0.1)
    )
    norm, same = (take_step(one, 1, steps[0]) for one in (free, clipped))
    assert norm == same > 0.1
    name = "momentum_buffer.model.transformer_encoder.0.wo.weight"
    expected = read(free, 1)[name] * (0.1 / (norm + 1e-6))
    torch.testing.assert_close(read(clipped, 1)[name], expected, rtol=1e-5, atol=0)
