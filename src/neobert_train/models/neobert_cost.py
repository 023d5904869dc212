"""What NeoBERT costs on a device, from its shape; imports no torch."""

from dataclasses import dataclass

from neobert_train.config.model_schema import FeedForwardKernel, NeoBERTModelConfig
from neobert_train.models.size import ModelSize

# Rows that the loss scores at a time, and of these those that it turns into probabilities at a time:
# CHUNK_ROWS and BLOCK_ROWS of modeling.cross_entropy, which needs torch.
LOSS_CHUNK_ROWS = 2048
LOSS_BLOCK_ROWS = 512


@dataclass(frozen=True)
class NeoBERTCost:
    """The size of a NeoBERT, and the bytes that a micro-batch takes.

    Attributes:
        model: its shape.
        vocab_size: entries of the vocabulary.
    """

    model: NeoBERTModelConfig
    vocab_size: int

    @property
    def size(self) -> ModelSize:
        """Parameters, in all and in blocks."""
        model, vocab_size = self.model, self.vocab_size
        hidden, width = model.hidden_size, model.compute_feed_forward_width()
        block = 4 * hidden * hidden + 3 * hidden * width + 2 * hidden
        blocks = model.num_hidden_layers * block + hidden
        embeddings = 2 * vocab_size * hidden + vocab_size
        return ModelSize(blocks, blocks + embeddings, hidden, model.num_hidden_layers, vocab_size)

    def list_block_tensors(self, bf16: bool, compiled: bool) -> dict[str, int]:
        """Return the bytes per token of what a block keeps on a GPU for its backward pass.

        Two names for one storage count once, and a part of a storage keeps the whole: the values lie
        among what `qkv` gives, the gate and its value among what `w12` gives. Compiled code computes
        the activation of the gate again, and quack its product with the value.
        """
        model = self.model
        hidden, width = model.hidden_size, model.compute_feed_forward_width()
        element = 2 if bf16 else 4
        has_quack = model.feed_forward is FeedForwardKernel.quack
        tensors = {
            "input of the block and its norm": element * hidden,
            "normalised input of qkv": element * hidden,
            "queries, keys and values as qkv gives them": element * 3 * hidden,
            "turned queries and keys": element * 2 * hidden,
            "output of attention, input of wo": element * hidden,
            "log-sums of attention": 4 * model.num_attention_heads,
            "residual stream between the halves": element * hidden,
            "normalised input of w12": element * hidden,
            "gate and value as w12 gives them": element * 2 * width,
            "silu of the gate": 0 if compiled or has_quack else element * width,
            "its product with the value, input of w3": 0 if has_quack else element * width,
            "scales of both norms": 2 * 4,
        }
        if not bf16:  # no packed kernel takes fp32, so documents are attended to one by one
            tensors["outputs of the documents before they are joined"] = element * hidden
        return tensors

    def compute_kept_bytes(self, tokens: int, num_targets: int, bf16: bool, compiled: bool) -> int:
        """Return the bytes that one micro-batch keeps on a GPU for its backward pass.

        With `activation_checkpointing` that is only the input of every block; the peak, where the
        tensors of one block are there as well, is what `estimate_activation_bytes` returns.
        """
        model, element = self.model, 2 if bf16 else 4
        head_size = model.hidden_size // model.num_attention_heads
        block = sum(self.list_block_tensors(bf16, compiled).values())
        if model.activation_checkpointing:
            block = element * model.hidden_size
        last_norm = element * model.hidden_size + 4
        rotary = 4 * head_size  # cosine and sine in fp32, once for all blocks
        # The loss keeps gradients in the place of scores: of the targets, the weight and the bias.
        weight_element = element if num_targets <= LOSS_CHUNK_ROWS else 4
        loss = element * num_targets * model.hidden_size
        loss += self.vocab_size * (weight_element * model.hidden_size + 4)
        return tokens * (model.num_hidden_layers * block + last_norm + rotary) + loss

    def estimate_activation_bytes(
        self, tokens: int, target_share: float, bf16: bool, compiled: bool
    ) -> float:
        """Return about how many bytes one micro-batch takes on a GPU beside the training state.

        Peak = kept tensors + max(loss buffers, feed-forward gradients); the two never coexist. The
        buffers are the scores of one chunk of the loss and the probabilities of one block of it; the
        gradients are four of the feed-forward width and two of the hidden one, and with
        `activation_checkpointing` the tensors of the block that is computed again.
        """
        model, element = self.model, 2 if bf16 else 4
        targets = round(target_share * tokens)
        scores = min(targets, LOSS_CHUNK_ROWS) * self.vocab_size * element
        scores += min(targets, LOSS_BLOCK_ROWS) * self.vocab_size * 2 * 4
        width = model.compute_feed_forward_width()
        gradients = tokens * element * (4 * width + 2 * model.hidden_size)
        if model.activation_checkpointing:
            gradients += tokens * sum(self.list_block_tensors(bf16, compiled).values())
        kept = self.compute_kept_bytes(tokens, targets, bf16, compiled)
        return kept + max(scores, gradients)
