"""Whether and how torch.compile can be used on this machine."""

import importlib.util
import logging
import os
import shutil

import torch

from neobert_train.config.derived import wants_compilation
from neobert_train.config.schema import TrainConfig

logger = logging.getLogger(__name__)

_COMPILERS = (os.environ.get("CXX", "g++"), "clang++")


def find_compiler_obstacle(device: torch.device) -> str | None:
    """Return why torch.compile cannot make code for this device; None when it can.

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


def prepare_compiler(device: torch.device) -> bool:
    """Return whether torch.compile can be used, and set it up; otherwise a warning says why not."""
    obstacle = find_compiler_obstacle(device)
    if obstacle is not None:
        logger.warning("torch.compile %s: running uncompiled", obstacle)
        return False
    if device.type == "cpu":
        _separate_cache_by_vectors()
    return True


def _separate_cache_by_vectors() -> None:
    """Let the compiler's cache tell code for vectors of different widths apart.

    Its keys hold its settings and not the processor: code made for AVX-512 and taken from the cache on
    a machine with AVX2 gives NaN.
    """
    from torch._inductor import config, cpu_vec_isa

    config.cpp.simdlen = cpu_vec_isa.pick_vec_isa().bit_width()


def decide_compilation(config: TrainConfig, device: torch.device) -> bool:
    """Return whether a run is to be compiled; a warning says where it was asked for in vain."""
    wanted = wants_compilation(config, config.deepspeed.zero_stage, device.type == "cuda")
    if config.model.compile and not wanted:
        logger.warning(
            "model.compile=true does not go with deepspeed=zero3, whose hooks inside of the blocks "
            "cannot be compiled: running uncompiled"
        )
    return wanted
