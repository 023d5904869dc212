"""Masked-language models of transformers as encoders, whatever their architecture.

Where the layers of a network hand what they are given on to their attention, documents stay packed and
are attended to by our own kernels; otherwise they become rows, padded to the longest of their group.
"""

import contextlib
import itertools
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.logging import (
    disable_progress_bar,
    get_verbosity,
    set_verbosity,
    set_verbosity_error,
)

from neobert_train.batch import Batch
from neobert_train.config.choices import Role
from neobert_train.config.model_schema import AttentionBackend, HuggingFaceModelConfig, ModelConfig
from neobert_train.errors import InputError
from neobert_train.modeling.cross_entropy import sum_cross_entropy
from neobert_train.modeling.layouts import close_documents
from neobert_train.models.encoder import choose_kernel
from neobert_train.models.folder import check_weights
from neobert_train.models.hugging_face_config import (
    make_network_config,
    read_config,
    restore_dropout,
)
from neobert_train.models.hugging_face_parts import (
    find_decoder,
    find_first_position,
    find_layout,
    list_fp32_buffers,
)
from neobert_train.models.hugging_face_trial import Trial, describe, try_out
from neobert_train.models.packed_attention import PACKED
from neobert_train.optim.matrices import MatrixLayout
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

logger = logging.getLogger(__name__)
disable_progress_bar()  # it writes a line for every file of weights

# Length of the shortest document of a group of rows, as a share of the longest.
_SHORTEST_SHARE = 0.75
_UNBOUNDED = 1 << 20


class HuggingFaceEncoder:
    """A network of transformers behind the protocol `Encoder`, which documents arguments and errors.

    Its dropout is off: a run then depends on no random state, and is continued exactly.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        self.network = network
        self._base: nn.Module = network.base_model
        if self._base is network:
            raise InputError(
                f"{type(network).__name__} is not told apart into an encoder and a head: name the "
                f"encoder's attribute in its base_model_prefix"
            )
        self._decoder = find_decoder(network)
        self._backend: str | None = None  # of packed documents; None pads them
        self._fp32_buffers = list_fp32_buffers(network)
        # RoBERTa and its kin count from behind the padding id.
        self._first_position = find_first_position(network)
        longest = getattr(network.config, "max_position_embeddings", None)
        self.max_length: int = (longest or _UNBOUNDED) - self._first_position

    @classmethod
    def build(
        cls,
        config: HuggingFaceModelConfig,
        tokenizer: TextTokenizer,
        kept: Mapping[str, Any] | None,
    ) -> "HuggingFaceEncoder":
        """Return the network with random weights, of the shape that a run kept or that is configured."""
        network_config = make_network_config(config, tokenizer.vocab_size, tokenizer.special, kept)
        return cls(build_network(network_config, config))

    @classmethod
    def load(
        cls, folder: Path, label: str, trust_remote_code: bool = False
    ) -> "HuggingFaceEncoder":
        """Return the network of a folder with its weights in fp32, read from safetensors only.

        Args:
            folder: of the model.
            label: what names it in messages.
            trust_remote_code: whether code in the folder may run.

        Raises:
            InputError: it cannot be loaded, or lacks weights.
        """
        config = read_config(folder, label, trust_remote_code)
        check_weights(folder, label, may_be_split=True)
        verbosity = get_verbosity()
        set_verbosity_error()  # of a table of what the folder holds beyond this model
        # Loading imports DeepSpeed, which otherwise looks for an accelerator and warns of what it finds.
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
        try:
            network, info = AutoModelForMaskedLM.from_pretrained(
                folder, config=config, dtype=torch.float32, use_safetensors=True,
                trust_remote_code=trust_remote_code, output_loading_info=True,
            )  # fmt: skip
        except Exception as error:  # whatever transformers and the code of a model raise
            raise InputError(
                f"{label} cannot be loaded by transformers: {describe(error)}"
            ) from error
        finally:
            set_verbosity(verbosity)
        _check_keys(network, info, label)
        return cls(network)

    def encode(self, batch: Batch) -> Tensor:
        """Return the hidden states of a packed batch, computed as it is packed or in padded rows."""
        self._keep_buffers()
        if self._backend is None:
            return self._encode_padded(batch)
        return self._encode_packed(batch, self._backend)

    def score(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and right predictions of the network's head, whose other rows are not computed."""

        def give_hidden(*_: Any, **__: Any) -> BaseModelOutput:
            return BaseModelOutput(last_hidden_state=hidden[None])

        def sum_loss(features: Tensor) -> tuple[Tensor, Tensor]:
            weight, bias = self._decoder.weight, self._decoder.bias
            bias = weight.new_zeros(len(weight)) if bias is None else bias
            return sum_cross_entropy(features[0], weight, bias, labels)

        # The head is what is left of the network without its encoder. Where it ends in a product with
        # the vocabulary, that becomes the loss, and scores never exist for all rows at once.
        with contextlib.ExitStack() as stack:
            stack.enter_context(_replace_forward(self._base, give_hidden))
            if self._decoder is not None:
                stack.enter_context(_replace_forward(self._decoder, sum_loss))
            output = self.network(input_ids=labels[None]).logits
        if self._decoder is not None:
            loss_sum, num_correct = output
            return loss_sum, num_correct
        scores = output[0].float()
        return F.cross_entropy(scores, labels, reduction="sum"), (scores.argmax(-1) == labels).sum()

    def list_roles(self) -> dict[str, Role]:
        """Return the roles; a decoder that shares the embedding's weights is an embedding."""
        tables = [m.weight for m in self.network.modules() if isinstance(m, nn.Embedding)]
        roles = dict.fromkeys(tables, Role.embedding)
        in_base = set(self._base.parameters())
        return {
            name: roles.get(p)
            or (Role.vector if p.dim() < 2 else Role.hidden_matrix if p in in_base else Role.head)
            for name, p in self.network.named_parameters()
        }

    def list_layouts(self) -> dict[str, MatrixLayout]:
        """Return how the weights of queries, keys and values, and of gated layers, are taken apart."""
        config = self.network.config
        num_heads = getattr(config, "num_attention_heads", 1)  # a network may have none
        head_size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
        layouts: dict[str, MatrixLayout] = {}
        for name, parameter in self._base.named_parameters(prefix=self.network.base_model_prefix):
            layout = find_layout(name.removesuffix(".weight"), len(parameter), head_size)
            if layout is not None and parameter.dim() == 2:
                layouts[name] = layout
        return layouts

    def settle_kernels(self, wanted: ModelConfig, device: torch.device, dtype: torch.dtype) -> str:
        """Return the kernel that is used from now on, `padded` where the network takes rows only."""
        backend = choose_kernel(wanted.attention, device, dtype)
        was_training = self.network.training
        with torch.no_grad():
            packs = self._settle(try_out(self.network.eval(), self.max_length))
        self.network.train(was_training)
        self._backend = backend if packs else None
        if not packs and wanted.attention is not AttentionBackend.auto:
            raise InputError(
                f"model.attention={wanted.attention.value} attends to packed documents, and this "
                f"network takes padded rows only: write model.attention=auto"
            )
        return self._backend or "padded"

    def compile(self, device: torch.device) -> bool:
        """Compile nothing, as `HuggingFaceModelConfig.can_compile` says."""
        return False

    def checkpoint_activations(self) -> None:
        """Keep only the input of every block (Chen et al., arXiv 1604.06174)."""
        settings = {"use_reentrant": False, "preserve_rng_state": False}
        self.network.gradient_checkpointing_enable(settings)

    def describe_network(self) -> dict[str, Any]:
        """Return the network's configuration, of which `build` makes the same network."""
        kept: dict[str, Any] = json.loads(self.network.config.to_json_string(use_diff=False))
        return kept

    def write(self, folder: Path, tokenizer: TextTokenizer, context_length: int) -> None:
        """Write what `save_pretrained` does, in one file of weights, and the tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        config = self.network.config
        self.network.config = restore_dropout(config)
        try:
            self.network.save_pretrained(folder, max_shard_size="1000GB")
        finally:
            self.network.config = config
        mode = stat.S_IMODE((folder / "config.json").stat().st_mode)
        (folder / "model.safetensors").chmod(mode)  # safetensors leaves it private
        tokenizer.save(folder, context_length)

    def _encode_packed(self, batch: Batch, backend: str) -> Tensor:
        documents = close_documents(batch.input_ids.shape, batch.cu_seqlens, batch.max_seqlen)
        hidden: Tensor = self._base(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None].long() + self._first_position,
            packing=(documents, backend),
        )[0][0]
        return hidden

    def _encode_padded(self, batch: Batch) -> Tensor:
        """Return the hidden states; zeros for the padding behind the documents."""
        padding = self.network.config.pad_token_id or 0
        device, parts, places = batch.input_ids.device, [], []
        # With weights in parts (ZeRO 3) every forward pass is one of all processes together.
        is_joint = hasattr(next(self.network.parameters()), "ds_id")
        least = 0.0 if is_joint else _SHORTEST_SHARE
        for begins, lengths in _group_documents(batch.cu_seqlens.tolist(), least):
            offsets = torch.arange(max(lengths), device=device)
            is_token = offsets < torch.tensor(lengths, device=device)[:, None]
            place = torch.tensor(begins, device=device)[:, None] + offsets
            ids = batch.input_ids[place.where(is_token, 0)].where(is_token, padding)
            output = self._base(input_ids=ids, attention_mask=is_token.long())[0]
            parts.append(output[is_token])
            places.append(place[is_token])
        hidden = torch.cat(parts)
        empty = hidden.new_zeros(len(batch.input_ids), hidden.shape[-1])
        return empty.index_copy(0, torch.cat(places), hidden)

    def _settle(self, trial: Trial) -> bool:
        """Find what can be done with the network; return whether it takes packed documents.

        Raises:
            InputError: in rows, documents change each other or their padding changes them, or the head
                cannot be told apart.
        """
        name, batch, is_same = type(self.network).__name__, trial.batch, trial.agrees_on_hidden
        if not is_same(self._encode_padded(batch)):
            raise InputError(
                f"{name} cannot be trained here: the hidden states of a document depend on the padding "
                f"behind it, or are not the same every time"
            )
        if not self._scores_like(trial):
            self._decoder = None  # its head does something with the scores
            if not self._scores_like(trial):
                raise InputError(
                    f"{name} cannot be trained here: its head needs more than the hidden states of its "
                    f"encoder, or of other tokens than the one it scores"
                )
        if not getattr(self.network, "_supports_attention_backend", False):
            return False
        own = self.network.config._attn_implementation
        with contextlib.suppress(Exception):  # whatever a network raises that does not suit
            self.network.set_attn_implementation(PACKED)
            if is_same(self._encode_packed(batch, "sdpa")):
                return True
        self.network.set_attn_implementation(own)
        return False

    def _scores_like(self, trial: Trial) -> bool:
        """Return whether the head, by itself, gives the loss of the network."""
        chosen = trial.hidden[trial.batch.masked_positions]
        try:
            loss_sum, _ = self.score(chosen, trial.batch.labels)
        except Exception:  # whatever a network raises for a loss in the place of scores
            return False
        return trial.agrees_on_loss(loss_sum)

    def _keep_buffers(self) -> None:
        """Give rotary frequencies back their precision; they are cast with the weights to bf16."""
        for module, name, value in self._fp32_buffers:
            buffer = getattr(module, name)
            if buffer.dtype is not torch.float32:
                setattr(module, name, value.to(buffer.device))


def build_network(
    network_config: PretrainedConfig, config: HuggingFaceModelConfig
) -> PreTrainedModel:
    """Return a network with random weights.

    Raises:
        InputError: transformers cannot build it.
    """
    try:
        network: PreTrainedModel = AutoModelForMaskedLM.from_config(
            network_config, dtype=torch.float32, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:  # whatever transformers and the code of a model raise
        raise InputError(f"model.name={config.name} cannot be built: {describe(error)}") from error
    return network


def _check_keys(network: PreTrainedModel, info: Mapping[str, Any], label: str) -> None:
    """Raise InputError where weights are missing, which would be random; warn of those left out."""
    missing, others = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        prefix = f"{network.base_model_prefix}."
        why = "as many layers as its config.json asks for have"
        if not any(name.startswith(prefix) for name in missing):
            why = "a head of masked-language modelling has"
        raise InputError(
            f"{label} lacks weights that {why}, such as {', '.join(missing[:3])} (training with "
            f"model.from_scratch=true begins with random ones throughout)"
        )
    if others:
        logger.warning(
            "not taken from %s: %s%s, of which this network has none", label, ", ".join(others[:3]),
            f" and {len(others) - 3} more" if len(others) > 3 else "",
        )  # fmt: skip


@contextlib.contextmanager
def _replace_forward(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute something else for a while; what hooks it has still run."""
    module.forward = function
    try:
        yield
    finally:
        del module.forward


def _group_documents(
    bounds: list[int], shortest_share: float
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield where the documents of a group begin and how long they are, those of like length together.

    Args:
        bounds: where documents begin and the last one ends.
        shortest_share: length of the shortest document of a group, as a share of the longest.
    """
    pairs = itertools.pairwise(bounds)
    documents = sorted(((end - begin, begin) for begin, end in pairs if end > begin), reverse=True)
    begins: list[int] = []
    lengths: list[int] = []
    for length, begin in documents:
        if lengths and length < shortest_share * lengths[0]:
            yield begins, lengths
            begins, lengths = [], []
        begins.append(begin)
        lengths.append(length)
    if lengths:
        yield begins, lengths
