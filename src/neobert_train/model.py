"""From the typed configuration to a NeoBERT with its first weights."""

import importlib.util
import logging
import os
import shutil
from collections.abc import Mapping

import torch
from torch import Tensor

from neobert_train.config.derived import wants_compilation
from neobert_train.config.schema import ModelConfig, Precision, TrainConfig
from neobert_train.errors import InputError
from neobert_train.modeling.attention import choose_backend
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

_COMPILERS = (os.environ.get("CXX", "g++"), "clang++")

DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp32: torch.float32}


def build_model_config(config: ModelConfig, tokenizer: TextTokenizer) -> NeoBERTConfig:
    """The model's own configuration; the vocabulary is the tokenizer's."""
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


def build_model(config: TrainConfig, tokenizer: TextTokenizer) -> NeoBERTForMaskedLM:
    """A model with initial weights that depend on the seed alone, the same on every process."""
    torch.manual_seed(config.seed)
    return NeoBERTForMaskedLM(build_model_config(config.model, tokenizer))


def choose_attention(config: TrainConfig, model: NeoBERTForMaskedLM, device: torch.device) -> str:
    """Settle the model on the configured attention backend.

    Raises:
        InputError: the backend cannot run on this device; says why.
    """
    try:
        backend = choose_backend(
            config.model.attention.value, device, DTYPES[config.trainer.precision]
        )
    except ValueError as error:
        raise InputError(f"{error}; write model.attention=auto to take one that can") from error
    model.model.attention_backend = backend
    return backend


def find_compiler_obstacle(device: torch.device) -> str | None:
    """Why torch.compile cannot make code for this device; None when it can.

    For GPUs Triton does most of it, and needs a C compiler for what calls its kernels.
    """
    if device.type == "cpu":
        if not any(map(shutil.which, _COMPILERS)):
            return f"needs a C++ compiler, and there is none ({', '.join(_COMPILERS)})"
        return None
    if importlib.util.find_spec("triton") is None:
        return "needs triton, and it is not installed (pip install triton)"
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    if not any(map(shutil.which, compilers)):
        return f"needs a C compiler, and there is none ({', '.join(compilers)})"
    return None


def compile_blocks(model: NeoBERTForMaskedLM, device: torch.device) -> bool:
    """Compile what surrounds attention in every block, where there is a compiler.

    All blocks share the compiled code. Attention stays outside: its kernels are opaque to the
    compiler, and reading document lengths would break the graph.

    Returns:
        Whether anything is compiled; otherwise a warning said why not.
    """
    obstacle = find_compiler_obstacle(device)
    if obstacle is not None:
        logger.warning("torch.compile %s: running uncompiled", obstacle)
        return False
    if device.type == "cpu":
        _tell_compiled_code_by_vectors()
    for block in model.model.transformer_encoder:
        block.project = torch.compile(block.project, dynamic=False)  # type: ignore[assignment, arg-type]
        block.combine = torch.compile(block.combine, dynamic=False)  # type: ignore[assignment, arg-type]
    return True


def _tell_compiled_code_by_vectors() -> None:
    """Let the compiler's cache tell code for vectors of different widths apart.

    Its keys hold its settings and not the processor: code made for AVX-512 and taken from the cache on
    a machine with AVX2 gives NaN.
    """
    from torch._inductor import config, cpu_vec_isa

    config.cpp.simdlen = cpu_vec_isa.pick_vec_isa().bit_width()


def decide_compilation(config: TrainConfig, device: torch.device) -> bool:
    """Whether `compile_blocks` is to be tried; a warning says where it was asked for in vain."""
    wanted = wants_compilation(config, config.deepspeed.zero_stage, device.type == "cuda")
    if config.model.compile and not wanted:
        logger.warning(
            "model.compile=true does not go with deepspeed=zero3, whose hooks inside of the blocks "
            "cannot be compiled: running uncompiled"
        )
    return wanted


def checkpoint_activations(model: NeoBERTForMaskedLM) -> None:
    """Keep only the input of every block, and compute the block again in the backward pass.

    From Chen et al., arXiv 1604.06174. Nothing in a block is random, so no random state is kept.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})


def load_into(model: NeoBERTForMaskedLM, weights: Mapping[str, Tensor], origin: str) -> None:
    """Copy weights into a model that has exactly these.

    Raises:
        InputError: names, shapes and numbers of tensors that do not fit.
    """
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in weights]
    problems += [f"{name} is not in the model" for name in weights if name not in expected]
    problems += [
        f"{name} has the shape {list(weights[name].shape)}, the model {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        shown = "\n  ".join(problems[:5])
        more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise InputError(
            f"the weights of {origin} do not fit the model; set model.* as it was trained:"
            f"\n  {shown}{more}"
        )
    model.load_state_dict(dict(weights))
