"""What a run is carried out with, for `environment.json`."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from neobert_train.config.schema import Precision
from neobert_train.world import World

_PACKAGES = (
    "neobert_train", "torch", "deepspeed", "transformers", "tokenizers", "datasets", "numpy",
    "pyarrow", "safetensors", "flash-attn", "flash-attn-3", "flash-attn-4", "xformers", "quack-kernels",
    "triton",
)  # fmt: skip


def describe_environment(
    world: World,
    attention_backend: str,
    feed_forward: str,
    precision: Precision,
    revisions: Mapping[str, str],
) -> dict[str, Any]:
    """Return versions, devices and source revision; nothing of the environment variables.

    Args:
        world: this process among all.
        attention_backend: in use.
        feed_forward: what computes the feed-forward layers.
        precision: in use.
        revisions: by setting, what was taken from the Hub, as `org/name@commit`.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": find_versions(),
        "git_revision": _find_git_revision(),
        "world_size": world.world_size,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu_threads": torch.get_num_threads(),
        "cpu_cores": os.cpu_count(),
        "attention": attention_backend,
        "feed_forward": feed_forward,
        "precision": precision.value,
        "revisions": dict(revisions),
    }


def find_versions() -> dict[str, str | None]:
    """Return versions of the packages that a run may use; None for those that are not installed."""
    return {name: _find_version(name) for name in _PACKAGES}


# Of which a difference may change results in the last bits.
_COMPARED = (
    "python",
    "packages",
    "git_revision",
    "device",
    "cpu_threads",
    "attention",
    "feed_forward",
    "precision",
)


def find_environment_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what differs between two starts of a run, each as `name: old -> new`."""
    old, new = _flatten(before), _flatten(now)
    return [
        f"{key}: {old[key]} -> {new[key]}" for key in old if key in new and old[key] != new[key]
    ]


def _flatten(environment: dict[str, Any]) -> dict[str, Any]:
    # Starts of earlier versions, which knew no other, do not name it.
    values = {key: environment.get(key) for key in _COMPARED} | {
        "feed_forward": environment.get("feed_forward", "torch")
    }
    return values | (values.pop("packages") or {})


def _find_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _find_git_revision() -> str | None:
    """Return the commit of the checkout the package runs from; None for an installed wheel."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
