"""NeoBERT as an encoder: the reference, computed on packed documents as they are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from neobert_train.batch import Batch
from neobert_train.config.choices import Role
from neobert_train.config.model_schema import ModelConfig, NeoBERTModelConfig, has_quack
from neobert_train.errors import InputError
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.models.compilation import prepare_compiler
from neobert_train.models.compiled_blocks import CompiledBlocks
from neobert_train.models.encoder import choose_kernel
from neobert_train.models.feed_forward import load_quack
from neobert_train.models.remote_code import AUTO_MAP, write_remote_code
from neobert_train.optim.matrices import MatrixLayout
from neobert_train.run.checkpoint import save_tensors
from neobert_train.tokenizers.text_tokenizer import TOKENIZER_CLASS, TextTokenizer

MODEL_TYPE = NeoBERTConfig.model_type


class NeoBERTEncoder:
    """NeoBERT behind the protocol `Encoder`, which documents arguments and errors."""

    def __init__(self, network: NeoBERTForMaskedLM) -> None:
        self.network = network
        self.max_length: int = network.config.max_length

    @classmethod
    def build(
        cls,
        config: NeoBERTModelConfig,
        tokenizer: TextTokenizer,
        kept: Mapping[str, Any] | None = None,
    ) -> "NeoBERTEncoder":
        """Return a NeoBERT with random weights; the vocabulary is the tokenizer's."""
        return cls(NeoBERTForMaskedLM(build_network_config(config, tokenizer)))

    @classmethod
    def load(cls, folder: Path, label: str) -> "NeoBERTEncoder":
        """Return an exported or published NeoBERT; only its safetensors are read, none of its code.

        Args:
            folder: of the model.
            label: what names it in messages.

        Raises:
            InputError: it cannot be loaded as a NeoBERT.
        """
        try:
            network, info = NeoBERTForMaskedLM.from_pretrained(
                folder, config=read_network_config(folder), dtype=torch.float32,
                use_safetensors=True, output_loading_info=True,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{label} cannot be loaded as a NeoBERT: {reason}") from error
        if info["missing_keys"]:  # they would be random
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise InputError(f"{label} cannot be loaded as a NeoBERT: it has no {missing}")
        return cls(network)

    def encode(self, batch: Batch) -> Tensor:
        """Return the hidden states of a packed batch, computed as it is packed."""
        hidden: Tensor = self.network.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            cu_seqlens=batch.cu_seqlens,
            max_seqlen=batch.max_seqlen,
        ).last_hidden_state
        return hidden

    def score(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and right predictions of the chunked vocabulary projection."""
        loss_sum, num_correct = self.network.decoder(hidden, labels)
        return loss_sum, num_correct

    def list_roles(self) -> dict[str, Role]:
        """Return the roles; a decoder that shares the embedding's weights is an embedding."""
        roles = {self.network.model.encoder.weight: Role.embedding}
        roles.setdefault(self.network.decoder.weight, Role.head)
        return {
            name: roles.get(p, Role.vector if p.dim() < 2 else Role.hidden_matrix)
            for name, p in self.network.named_parameters()
        }

    def list_layouts(self) -> dict[str, MatrixLayout]:
        """Return those of `qkv`, whose rows are q, k and v of one head after the other, and of `w12`."""
        num_heads, head_size = self.network.config.num_attention_heads, self.network.config.dim_head
        qkv = MatrixLayout((num_heads, 3, head_size), apart=(1,), heads=0)
        gate_and_value = MatrixLayout((2, self.network.config.feed_forward_width), apart=(0,))
        layouts: dict[str, MatrixLayout] = {}
        for number in range(self.network.config.num_hidden_layers):
            block = f"model.transformer_encoder.{number}"
            layouts |= {f"{block}.qkv.weight": qkv, f"{block}.ffn.w12.weight": gate_and_value}
        return layouts

    def settle_kernels(self, wanted: ModelConfig, device: torch.device, dtype: torch.dtype) -> str:
        """Return the backend of `modeling.attention` that is used from now on."""
        backend = choose_kernel(wanted.attention, device, dtype)
        self.network.model.attention_backend = backend
        kernel = load_quack(device, dtype) if has_quack(wanted) else None
        for block in self.network.model.transformer_encoder:
            block.ffn.kernel = kernel  # type: ignore[union-attr]
        return backend

    def compile(self, device: torch.device) -> bool:
        """Compile what surrounds attention in every block, where there is a compiler.

        All blocks share the compiled code. Attention stays outside: its kernels are opaque to the
        compiler, and reading document lengths would break the graph. On GPUs blocks are compiled across
        their borders, except where their activations are checkpointed.
        """
        if not prepare_compiler(device):
            return False
        model = self.network.model
        if device.type == "cuda":
            model.run_blocks = CompiledBlocks(model.transformer_encoder)  # type: ignore[arg-type]
        for block in model.transformer_encoder:
            block.project = torch.compile(block.project, dynamic=False)  # type: ignore[assignment, arg-type]
            block.combine = torch.compile(block.combine, dynamic=False)  # type: ignore[assignment, arg-type]
        return True

    def checkpoint_activations(self) -> None:
        """Keep only the input of every block (Chen et al., arXiv 1604.06174).

        Nothing in a block is random, so no random state is kept.
        """
        settings = {"use_reentrant": False, "preserve_rng_state": False}
        self.network.gradient_checkpointing_enable(settings)

    def describe_network(self) -> dict[str, Any]:
        """Return nothing, since the settings of a run say it all."""
        return {}

    def write(self, folder: Path, tokenizer: TextTokenizer, context_length: int) -> None:
        """Write weights under the published names, the configuration, the code and the tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        save_tensors(weights, folder / "model.safetensors", {"format": "pt"})
        special = tokenizer.special
        config = self.network.config.to_diff_dict() | {
            "architectures": ["NeoBERTForMaskedLM"],
            "auto_map": AUTO_MAP,
            "dtype": "float32",
            # Without it pipelines of transformers 4.48 leave the tokenizer out.
            "tokenizer_class": TOKENIZER_CLASS,
            "cls_token_id": special.cls,
            "sep_token_id": special.sep,
            "mask_token_id": special.mask,
        }
        text = json.dumps(dict(sorted(config.items())), indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        write_remote_code(folder)
        tokenizer.save(folder, context_length)


def build_network_config(config: NeoBERTModelConfig, tokenizer: TextTokenizer) -> NeoBERTConfig:
    """Return the network's own configuration; the vocabulary is the tokenizer's."""
    return NeoBERTConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        embedding_init_range=config.embedding_init_range,
        decoder_init_range=config.decoder_init_range,
        norm_eps=config.norm_eps,
        max_length=config.max_length,
        vocab_size=tokenizer.vocab_size,
        pad_token_id=tokenizer.special.pad,
    )


def read_network_config(folder: Path) -> NeoBERTConfig:
    """Return the configuration in a folder.

    Raises:
        InputError: it is not that of a NeoBERT.
    """
    file = folder / "config.json"
    try:
        config: NeoBERTConfig = NeoBERTConfig.from_dict(
            json.loads(file.read_text(encoding="utf-8"))
        )
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{file} cannot be read as the config.json of a NeoBERT: {error}"
        ) from error
    return config
