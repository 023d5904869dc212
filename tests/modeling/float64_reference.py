"""NeoBERT by its formulas: one document at a time, in float64, with complex rotations."""

import math

import torch
from torch import Tensor

from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM

# Odd sizes on purpose: 2/3 of 100 is 66.7, so the feed-forward width rounds up to 72; the epsilon
# is large enough to be seen.
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 100,
    "norm_eps": 0.05,
    "vocab_size": 61,
    "max_length": 64,
}


def build_random_model(seed: int = 0, **changes) -> NeoBERTForMaskedLM:
    """A small model in eval mode whose every weight, norms and biases too, matters to the output."""
    model = NeoBERTForMaskedLM(NeoBERTConfig(**{**SMALL, **changes})).eval()
    return randomise(model, seed)


def randomise(model: torch.nn.Module, seed: int = 0):
    """Weights large enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 1.5 / math.sqrt(parameter.shape[-1]) if parameter.dim() == 2 else 0.3
            parameter.copy_(noise * scale + (1.0 if parameter.dim() == 1 else 0.0))
    return model


def random_ids(*shape: int, vocab_size: int = 61, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, vocab_size, shape, generator=generator)


def double_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights as float64 leaves that collect gradients."""
    return {
        name: value.detach().double().requires_grad_() for name, value in model.named_parameters()
    }


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One head, [n, d] each: the output and the probabilities."""
    scores = q @ k.T / math.sqrt(q.shape[-1])
    powers = torch.exp(scores - scores.max(-1, keepdim=True).values)
    probabilities = powers / powers.sum(-1, keepdim=True)
    return probabilities @ v, probabilities


def rotate_complex(x: Tensor, positions: Tensor) -> Tensor:
    """Channels (2j, 2j + 1) are one complex number, turned by position / 10,000^(2j / d)."""
    size = x.shape[-1]
    angles = positions.double()[:, None] / 10_000 ** (torch.arange(0, size, 2).double() / size)
    pairs = torch.complex(x[:, 0::2], x[:, 1::2]) * torch.exp(1j * angles)
    return torch.stack((pairs.real, pairs.imag), dim=-1).reshape(x.shape)


def encode(
    state: dict[str, Tensor],
    config: NeoBERTConfig,
    ids: Tensor,
    positions: Tensor | None = None,
    prefix: str = "model.",
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """One document [n]: final hidden states, the residual streams, the attention probabilities."""
    positions = torch.arange(len(ids)) if positions is None else positions
    size = config.hidden_size // config.num_attention_heads
    x = state[f"{prefix}encoder.weight"][ids]
    streams, maps = [x], []
    for layer in range(config.num_hidden_layers):
        block = f"{prefix}transformer_encoder.{layer}."
        normed = rms_norm(x, state[f"{block}attention_norm.weight"], config.norm_eps)
        outputs, layer_maps = [], []
        for head in range(config.num_attention_heads):
            rows = state[f"{block}qkv.weight"][3 * size * head : 3 * size * (head + 1)]
            q, k, v = (normed @ rows[part * size : (part + 1) * size].T for part in range(3))
            attended, probabilities = attention(
                rotate_complex(q, positions), rotate_complex(k, positions), v
            )
            outputs.append(attended)
            layer_maps.append(probabilities)
        x = x + torch.cat(outputs, dim=-1) @ state[f"{block}wo.weight"].T
        normed = rms_norm(x, state[f"{block}ffn_norm.weight"], config.norm_eps)
        both = normed @ state[f"{block}ffn.w12.weight"].T
        gate, value = both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :]
        swiglu = gate / (1 + torch.exp(-gate)) * value
        x = x + swiglu @ state[f"{block}ffn.w3.weight"].T
        streams.append(x)
        maps.append(torch.stack(layer_maps))
    return rms_norm(x, state[f"{prefix}layer_norm.weight"], config.norm_eps), streams, maps


def predict(
    state: dict[str, Tensor], config: NeoBERTConfig, ids: Tensor, positions: Tensor | None = None
) -> Tensor:
    """Vocabulary scores [n, vocab_size] of one document."""
    hidden = encode(state, config, ids, positions)[0]
    return hidden @ state["decoder.weight"].T + state["decoder.bias"]


def assert_near(ours: Tensor, reference: Tensor, relative: float = 2e-6) -> None:
    """The largest difference, as a share of the largest value, is below `relative`."""
    assert ours.shape == reference.shape
    difference = (ours.double() - reference.detach()).abs().max()
    assert difference <= relative * reference.detach().abs().max(), float(difference)
