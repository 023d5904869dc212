"""What the rest of the framework may know of a network."""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from neobert_train.batch import Batch
from neobert_train.config.choices import Role
from neobert_train.config.model_schema import AttentionBackend, ModelConfig
from neobert_train.config.schema import Precision
from neobert_train.errors import InputError
from neobert_train.modeling.attention import choose_backend
from neobert_train.models.size import ModelSize
from neobert_train.optim.matrices import MatrixLayout
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp32: torch.float32}


class Encoder(Protocol):
    """A text encoder with a head that scores the vocabulary.

    Attributes:
        network: holds the parameters, whose names are those of checkpoints.
        max_length: most tokens of a document.
    """

    network: PreTrainedModel
    max_length: int

    def encode(self, batch: Batch) -> Tensor:
        """Return the hidden states [T, hidden_size]; no token attends to another document."""

    def score(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy (nats, float32) and the number of right predictions.

        Args:
            hidden: [M, hidden_size], of the tokens to predict.
            labels: [M] int64, their ids.
        """

    def list_roles(self) -> dict[str, Role]:
        """Return what every parameter is for, by its name."""

    def list_layouts(self) -> dict[str, MatrixLayout]:
        """Return how hidden matrices are taken apart that hold several, by name.

        One that is left out is a single matrix, as wide as its input.
        """

    def settle_kernels(self, wanted: ModelConfig, device: torch.device, dtype: torch.dtype) -> str:
        """Settle the kernels that are used from now on, and return that of attention.

        Args:
            wanted: says which; a `ModelConfig()` takes those that can run.
            device, dtype: of the hidden states.

        Raises:
            InputError: one that is wanted cannot run on this device; says why.
        """

    def compile(self, device: torch.device) -> bool:
        """Compile what can be compiled; return whether anything is. A warning says why not."""

    def checkpoint_activations(self) -> None:
        """Keep only the input of every block, and compute the block again in the backward pass."""

    def describe_network(self) -> dict[str, Any]:
        """Return, ready for JSON, what a run keeps to build the network again.

        Nothing where the settings of the run say it all.
        """

    def write(self, folder: Path, tokenizer: TextTokenizer, context_length: int) -> None:
        """Write what `AutoModel...from_pretrained(folder)` needs; the folder is made if missing.

        Args:
            folder: to write to.
            tokenizer: of the model, written beside it.
            context_length: tokens to which the tokenizer cuts texts when asked to.
        """


def choose_kernel(wanted: AttentionBackend, device: torch.device, dtype: torch.dtype) -> str:
    """Return the kernel for packed documents that `model.attention` stands for.

    Raises:
        InputError: the one wanted cannot run on this device; says why.
    """
    try:
        return choose_backend(wanted.value, device, dtype)
    except ValueError as error:
        raise InputError(f"{error}; write model.attention=auto to take one that can") from error


def get_parameters(network: PreTrainedModel) -> dict[str, Tensor]:
    """Return what is trained and kept of a network, by name; what is shared, by its first name."""
    return dict(network.named_parameters())


def measure_size(encoder: Encoder) -> ModelSize:
    """Return the parameters of a network, and the shape that its operations follow from.

    Blocks are all of its encoder but for embeddings.
    """
    roles, network = encoder.list_roles(), encoder.network
    in_blocks = {
        parameter
        for name, parameter in network.named_parameters()
        if roles[name] is not Role.embedding
    } & set(network.base_model.parameters())
    return ModelSize(
        sum(parameter.numel() for parameter in in_blocks),
        sum(parameter.numel() for parameter in network.parameters()),
        network.config.hidden_size,
        network.config.num_hidden_layers,
        network.config.vocab_size,
    )
