"""What a network of transformers makes of a few documents, each by itself: the measure of all else."""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from neobert_train.batch import Batch
from neobert_train.errors import InputError

# Together longer than what networks with learned positions take, and of different lengths, so that rows
# are padded.
_LENGTHS = (200, 9, 170, 101, 130)
_MOST_REASON = 300  # characters of what transformers says, whose messages go over many lines


@dataclass(frozen=True)
class Trial:
    """A batch, and what a network gives for its documents without padding and without each other.

    Attributes:
        batch: of documents of random ids.
        hidden: [T, hidden_size] float32.
        loss_sum: cross-entropy of its targets, in nats.
    """

    batch: Batch
    hidden: Tensor
    loss_sum: float

    def agrees_on_hidden(self, hidden: Tensor) -> bool:
        """Return whether hidden states are the same but for rounding."""
        return bool((hidden - self.hidden).abs().max() < 1e-4 * self.hidden.abs().max())

    def agrees_on_loss(self, loss_sum: Tensor) -> bool:
        """Return whether a loss is the same but for rounding."""
        return abs(float(loss_sum) - self.loss_sum) < 1e-4 * abs(self.loss_sum)


def try_out(network: PreTrainedModel, max_length: int) -> Trial:
    """Let a network, in fp32 and in evaluation mode, compute some documents one by one.

    Args:
        network: with a head of masked-language modelling.
        max_length: most tokens of a document.

    Raises:
        InputError: it cannot.
    """
    batch = _build_batch(network.config.vocab_size, max_length)
    batch = batch.to(next(network.parameters()).device)
    found: list[Tensor] = []
    hook = network.base_model.register_forward_hook(lambda *call: found.append(call[2][0][0]))
    scores = []
    try:
        for begin, end in itertools.pairwise(batch.cu_seqlens.tolist()):
            ids = batch.input_ids[None, begin:end]
            scores.append(network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0])
        hidden = torch.cat(found)
        chosen = torch.cat(scores)[batch.masked_positions]
        loss_sum = float(F.cross_entropy(chosen, batch.labels, reduction="sum"))
    except Exception as error:  # whatever the code of a network raises
        raise InputError(
            f"{type(network).__name__} cannot be trained here, since it does not take documents of any "
            f"length by ids and mask only: {describe(error)}"
        ) from error
    finally:
        hook.remove()
    return Trial(batch, hidden, loss_sum)


def describe(error: BaseException) -> str:
    """Return what transformers, or the code of a network, says of an error, in one line."""
    return " ".join(str(error).split())[:_MOST_REASON] or type(error).__name__


def _build_batch(vocab_size: int, max_length: int) -> Batch:
    lengths = [min(length, max_length) for length in _LENGTHS]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    generator = torch.Generator().manual_seed(0)
    num_tokens = int(bounds[-1])
    # The first ids are special, among them the padding.
    ids = torch.randint(vocab_size // 2, vocab_size, (2, num_tokens), generator=generator)
    targets = torch.arange(1, num_tokens, 5)
    return Batch(
        input_ids=ids[0],
        position_ids=torch.cat([torch.arange(length) for length in lengths]).int(),
        cu_seqlens=bounds.int(),
        max_seqlen=max(lengths),
        masked_positions=targets,
        labels=ids[1, targets],
        lane=0,
        lane_state={},
    )
