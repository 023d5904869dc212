"""Muon and NorMuon, against torch's and against their formulas in float64."""

import math

import numpy as np
import pytest
import torch
from torch.optim import _muon
from torch.utils.flop_counter import FlopCounterMode

from neobert_train.config.choices import AdamWConfig, GroupConfig, MuonConfig, NorMuonConfig, Role
from neobert_train.optim.matrices import MatrixLayout
from neobert_train.optim.muon import deal
from neobert_train.optim.newton_schulz import count_flops, orthogonalise
from neobert_train.optim.optimizers import build_optimizer

SHAPES = {"tall": (12, 5), "wide": (4, 9), "square": (6, 6)}
NUM_STEPS = 3


def make_weights(shapes, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype))
        for name, shape in shapes.items()
    }


def make_gradients(shapes, dtype=torch.float64):
    """Those of every step, by name."""
    return [
        {name: weight.detach() for name, weight in make_weights(shapes, seed, dtype).items()}
        for seed in range(10, 10 + NUM_STEPS)
    ]


def train(optimizer, weights, steps):
    for gradients in steps:
        for name, weight in weights.items():
            weight.grad = gradients[name].clone()
        optimizer.step()


def build(config, weights, roles=None, layouts=None):
    roles = roles or dict.fromkeys(weights, Role.hidden_matrix)
    return build_optimizer(config, weights, roles, layouts or {})


def compute_orthogonal(matrix, num_steps):
    """The iteration on the singular values alone, in float64."""
    u, values, v = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.sqrt(np.sum(values**2))
    for _ in range(num_steps):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (u * values) @ v


def compute_muon(weight, gradients, lr, config):
    momentum = np.zeros_like(weight)
    for gradient in gradients:
        momentum = config.momentum * momentum + (1 - config.momentum) * gradient
        blended = config.momentum * momentum + (1 - config.momentum) * gradient
        update = compute_orthogonal(blended if config.nesterov else momentum, config.ns_steps)
        scale = 0.2 * math.sqrt(max(weight.shape))
        weight = weight * (1 - lr * config.weight_decay) - lr * scale * update
    return weight


def compute_normuon(weight, gradients, lr, config):
    momentum, squares = np.zeros_like(weight), np.zeros(len(weight))
    for gradient in gradients:
        momentum = config.momentum * momentum + (1 - config.momentum) * gradient
        blended = config.momentum * momentum + (1 - config.momentum) * gradient
        update = compute_orthogonal(blended if config.nesterov else momentum, config.ns_steps)
        squares = config.beta2 * squares + (1 - config.beta2) * np.mean(update**2, axis=1)
        update = update / (np.sqrt(squares)[:, None] + 1e-8)
        scale = 0.2 * math.sqrt(update.size) / np.sqrt(np.sum(update**2))
        weight = weight * (1 - lr * config.weight_decay) - lr * scale * update
    return weight


FORMULAS = {MuonConfig: compute_muon, NorMuonConfig: compute_normuon}


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("kind", FORMULAS)
def test_steps_are_those_of_the_formula(kind, nesterov):
    config = kind(
        lr=0.02, nesterov=nesterov, ns_steps=4, hidden_matrix=GroupConfig(lr_multiplier=0.5)
    )
    weights, steps = make_weights(SHAPES, 1), make_gradients(SHAPES)
    before = {name: weight.detach().numpy().copy() for name, weight in weights.items()}
    train(build(config, weights), weights, steps)
    for name, weight in weights.items():
        gradients = [gradients[name].numpy() for gradients in steps]
        expected = FORMULAS[kind](before[name], gradients, 0.01, config)
        np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("heads_per_matrix", [None, 1])
@pytest.mark.parametrize("kind", FORMULAS)
def test_matrices_in_one_weight_are_updated_as_if_apart(kind, heads_per_matrix):
    shapes = {"qkv": (18, 6)}
    config = kind(lr=0.02, heads_per_matrix=heads_per_matrix)
    layout = MatrixLayout((2, 3, 3), apart=(1,), heads=0)
    weights, steps = make_weights(shapes, 1), make_gradients(shapes)

    def split(values):
        """[6, 6] of q, of k and of v, or of each of their two heads [3, 6]."""
        heads = values.reshape(2, 3, 3, 6)
        parts = [heads[:, index] for index in range(3)]
        if heads_per_matrix is None:
            return [part.reshape(6, 6) for part in parts]
        return [part[head] for part in parts for head in range(2)]

    before = split(weights["qkv"].detach().numpy().copy())
    gradients = zip(*(split(step["qkv"].numpy()) for step in steps), strict=True)
    expected = [
        FORMULAS[kind](matrix, list(of_matrix), 0.02, config)
        for matrix, of_matrix in zip(before, gradients, strict=True)
    ]
    train(build(config, weights, layouts={"qkv": layout}), weights, steps)
    for found, matrix in zip(split(weights["qkv"].detach().numpy()), expected, strict=True):
        np.testing.assert_allclose(found, matrix, rtol=0, atol=1e-10)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("own_products", [True, False], ids=["fp32", "bf16"])
def test_muon_is_that_of_torch(monkeypatch, nesterov, own_products):
    """Which has its products in bf16 everywhere: they are 1 % off, and all else is the same."""
    if own_products:
        monkeypatch.setattr(
            _muon, "_zeropower_via_newtonschulz",
            lambda matrix, _, steps, __: orthogonalise(matrix[None], steps)[0],
        )  # fmt: skip
    config = MuonConfig(lr=0.02, nesterov=nesterov, weight_decay=0.1)
    steps = make_gradients(SHAPES, torch.float32)
    weights, others = (make_weights(SHAPES, 1, torch.float32) for _ in range(2))
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    train(build(config, weights), weights, steps)
    reference = torch.optim.Muon(
        list(others.values()), lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=nesterov,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    train(reference, others, steps)
    for name, weight in weights.items():
        change = others[name] - before[name]
        error = (weight - others[name]).norm() / change.norm()
        assert error < (1e-6 if own_products else 0.03), name


def test_updates_have_the_size_of_those_of_adamw():
    shapes = {"wide": (64, 256), "tall": (256, 64)}
    weights = make_weights(shapes, 1)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    config = MuonConfig(lr=1.0, weight_decay=0.0)
    train(build(config, weights), weights, make_gradients(shapes)[:1])
    for name, weight in weights.items():
        size = (weight.detach() - before[name]).square().mean().sqrt()
        assert 0.16 < size < 0.23


def test_what_is_no_hidden_matrix_is_trained_by_adamw():
    shapes = {"table": (7, 4), "head": (7, 4), "gain": (4,), "hidden": (4, 4)}
    kinds = (Role.embedding, Role.head, Role.vector, Role.hidden_matrix)
    roles = dict(zip(shapes, kinds, strict=True))
    steps = make_gradients(shapes, torch.float32)
    settings = {"lr": 0.02, "betas": [0.8, 0.9], "eps": 1e-6, "embedding": GroupConfig(2.0, 0.3)}
    weights, others = (make_weights(shapes, 1, torch.float32) for _ in range(2))
    train(build(MuonConfig(**settings), weights, roles), weights, steps)
    train(build(AdamWConfig(**settings), others, roles), others, steps)
    same = {name for name, weight in weights.items() if weight.equal(others[name])}
    assert same == shapes.keys() - {"hidden"}


def test_what_has_no_gradient_is_left_alone():
    shapes = {"hidden": (4, 4), "gain": (4,)}
    weights = make_weights(shapes, 1)
    optimizer = build(MuonConfig(), weights, {"hidden": Role.hidden_matrix, "gain": Role.vector})
    train(optimizer, weights, make_gradients(shapes)[:1])
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    kept = optimizer.state[weights["hidden"]]["momentum_buffer"].clone()
    for weight in weights.values():
        weight.grad = None
    optimizer.step()
    assert all(weight.equal(before[name]) for name, weight in weights.items())
    assert optimizer.state[weights["hidden"]]["momentum_buffer"].equal(kept)


@pytest.mark.parametrize("kind", FORMULAS)
def test_a_gradient_of_zero_gives_no_nan(kind):
    """As the step has that creates the moments when a run continues."""
    weights = make_weights({"hidden": (4, 6)}, 1, torch.float32)
    train(build(kind(), weights), weights, [{"hidden": torch.zeros(4, 6)}])
    assert weights["hidden"].isfinite().all()


@pytest.mark.parametrize("shape", SHAPES.values())
def test_singular_values_come_close_to_one(shape):
    weights = make_weights(dict.fromkeys("abc", shape), 3).values()
    matrices = torch.stack([weight.detach() for weight in weights])
    values = torch.linalg.svdvals(orthogonalise(matrices, 10))
    assert values.min() > 0.6
    assert values.max() < 1.25


def test_work_is_dealt_once_and_evenly():
    costs = [5.0, 1.0, 1.0, 1.0, 3.0, 1.0]
    assert deal(costs, 1) == [0] * 6
    owners = deal(costs, 2)
    shares = [sum(np.array(costs)[np.array(owners) == rank]) for rank in (0, 1)]
    assert shares == [6, 6]
    assert deal([2.0], 3) == [0]
    assert deal([], 3) == []


def test_the_operations_are_those_of_the_products():
    """Counted by torch itself."""
    for rows, columns in SHAPES.values():
        with FlopCounterMode(display=False) as counter:
            orthogonalise(torch.ones(3, rows, columns), 5)
        assert counter.get_total_flops() == count_flops(3, rows, columns, 5)
