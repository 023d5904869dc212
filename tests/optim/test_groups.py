"""Parameters are trained by their role."""

import pytest
import torch

from neobert_train.config.choices import CHOICES, AdamWConfig, GroupConfig, Role
from neobert_train.config.model_schema import NeoBERTModelConfig
from neobert_train.models.neobert import NeoBERTEncoder
from neobert_train.optim.groups import build_groups
from neobert_train.optim.optimizers import build_optimizer


@pytest.fixture(scope="module")
def encoder(tokenizer):
    shape = NeoBERTModelConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    return NeoBERTEncoder.build(shape, tokenizer)


def describe(encoder):
    """What an optimiser is told of an encoder."""
    return dict(encoder.network.named_parameters()), encoder.list_roles(), encoder.list_layouts()


def name_groups(groups, network):
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in groups]


def test_every_parameter_has_the_role_of_its_place(encoder):
    roles = encoder.list_roles()
    assert roles.keys() == dict(encoder.network.named_parameters()).keys()
    assert [name for name, role in roles.items() if role is Role.embedding] == [
        "model.encoder.weight"
    ]
    assert [name for name, role in roles.items() if role is Role.head] == ["decoder.weight"]
    matrices = {
        name.split(".", 3)[-1] for name, role in roles.items() if role is Role.hidden_matrix
    }
    assert matrices == {"qkv.weight", "wo.weight", "ffn.w12.weight", "ffn.w3.weight"}
    vectors = [name for name, role in roles.items() if role is Role.vector]
    assert all("norm" in name or name == "decoder.bias" for name in vectors)


def test_by_default_matrices_are_decayed_and_vectors_are_not(encoder):
    matrices, vectors = build_groups(AdamWConfig(), *describe(encoder))
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {p.dim() for p in matrices["params"]} == {2}
    assert {p.dim() for p in vectors["params"]} == {1}
    assert matrices["base_lr"] == matrices["lr"] == 6e-4


def test_roles_have_rates_and_decay_of_their_own(encoder):
    config = AdamWConfig(
        lr=0.1,
        embedding=GroupConfig(lr_multiplier=0.5),
        head=GroupConfig(lr_multiplier=0.5, weight_decay=0.3),
        vector=GroupConfig(lr_multiplier=2.0),
    )
    groups = build_groups(config, *describe(encoder))
    by_name = dict(zip(map(tuple, name_groups(groups, encoder.network)), groups, strict=True))
    found = {
        name: (group["base_lr"], group["weight_decay"])
        for names, group in by_name.items()
        for name in names
    }
    assert found["model.encoder.weight"] == (0.05, 0.1)
    assert found["decoder.weight"] == (0.05, 0.3)
    assert found["decoder.bias"] == (0.2, 0.1)
    assert found["model.transformer_encoder.0.qkv.weight"] == (0.1, 0.1)
    assert len(found) == len(list(encoder.network.parameters()))


def test_without_decay_vectors_still_have_their_own_group(encoder):
    groups = build_groups(AdamWConfig(weight_decay=0.0), *describe(encoder))
    assert [group["weight_decay"] for group in groups] == [0.0, 0.0]


def test_parameters_that_are_not_trained_are_left_out(encoder):
    encoder.network.decoder.weight.requires_grad_(False)
    try:
        names = name_groups(build_groups(AdamWConfig(), *describe(encoder)), encoder.network)
        assert "decoder.weight" not in [name for group in names for name in group]
    finally:
        encoder.network.decoder.weight.requires_grad_(True)


def test_adamw_is_that_of_torch_with_its_settings(encoder):
    config = AdamWConfig(betas=[0.8, 0.9], eps=1e-6)
    optimizer = build_optimizer(config, *describe(encoder))
    assert type(optimizer) is torch.optim.AdamW
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["fused"]) == ((0.8, 0.9), 1e-6, True)


@pytest.mark.parametrize("kind", CHOICES["optimizer"])
def test_the_moments_are_those_that_the_optimiser_keeps(kind):
    config = CHOICES["optimizer"][kind]()
    roles = {"matrix": Role.hidden_matrix, "table": Role.embedding, "bias": Role.vector}
    shapes = {"matrix": (4, 6), "table": (4, 6), "bias": (6,)}
    weights = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    optimizer = build_optimizer(config, weights, roles, {})
    optimizer.step()
    for name, weight in weights.items():
        kept = {key: tuple(value.shape) for key, value in optimizer.state[weight].items()}
        kept.pop("step", None)
        moments = config.list_moments(roles[name])
        assert kept == {moment.name: moment.compute_shape(shapes[name]) for moment in moments}
