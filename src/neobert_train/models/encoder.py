"""What the rest of the framework may know of a network."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from neobert_train.batch import Batch
from neobert_train.config.choices import Role
from neobert_train.config.schema import Precision
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp32: torch.float32}


class Encoder(Protocol):
    """A text encoder with a head that scores the vocabulary.

    Attributes:
        network: holds the parameters; the names in its `state_dict` are those of checkpoints.
    """

    network: PreTrainedModel

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

    def choose_attention(self, wanted: str, device: torch.device, dtype: torch.dtype) -> str:
        """Return the attention kernel that is used from now on.

        Raises:
            InputError: the one wanted cannot run on this device; says why.
        """

    def compile(self, device: torch.device) -> bool:
        """Compile what can be compiled; return whether anything is. A warning says why not."""

    def checkpoint_activations(self) -> None:
        """Keep only the input of every block, and compute the block again in the backward pass."""

    def write(self, folder: Path, tokenizer: TextTokenizer, context_length: int) -> None:
        """Write what `AutoModel...from_pretrained(folder)` needs; the folder is made if missing.

        Args:
            folder: to write to.
            tokenizer: of the model, written beside it.
            context_length: tokens to which the tokenizer cuts texts when asked to.
        """
