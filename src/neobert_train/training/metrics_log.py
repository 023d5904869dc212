"""metrics.jsonl and Weights & Biases."""

import json
import logging
import math
import os
import re
from pathlib import Path
from typing import Any

from neobert_train.config.saved import dump_config
from neobert_train.config.schema import TrainConfig, WandbMode
from neobert_train.files import write_atomically
from neobert_train.run.metrics_file import read_metrics

logger = logging.getLogger(__name__)

_WANDB_TIMEOUT_SECONDS = 30
# What W&B records by itself may hold secrets: the command line, the remote of a git checkout, the
# code, and whatever libraries print.
_WANDB_RECORDS = {
    "x_disable_meta": True, "disable_git": True, "disable_code": True, "console": "off",
}  # fmt: skip


class MetricsLog:
    """Appends one JSON object per logged step, and sends it to W&B when asked.

    Args:
        path: metrics.jsonl.
        step: where the run continues; lines of later steps are dropped, since they come again.
        wandb_run: as `start_wandb` gives.

    Raises:
        InputError: what is there is damaged.
    """

    def __init__(self, path: Path, step: int, wandb_run: Any = None) -> None:
        records = read_metrics(path) if step else ()  # nothing of it stays where a run begins
        kept = [record for record in records if record["step"] <= step]
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._unwritten = ""
        self._wandb_run = wandb_run

    def write(self, record: dict[str, Any]) -> None:
        """Append a record with a `step` key; JSON knows no NaN, so it is written as null.

        What a full disk does not take is written with a later record.
        """
        finite = {key: None if _is_not_finite(value) else value for key, value in record.items()}
        self._unwritten += json.dumps(finite) + "\n"
        self._flush()
        if self._wandb_run is not None:
            self._wandb_run.log(record, step=record["step"])

    def _flush(self) -> None:
        data = self._unwritten.encode()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            logger.warning("%s cannot be written (%s); tried again later", self._file.name, error)
        self._unwritten = data.decode()

    def sync(self) -> None:
        """Let what is written survive a power loss."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            logger.warning("%s cannot be synced: %s", self._file.name, error)

    def close(self) -> None:
        """Finish writing."""
        self._flush()
        self._file.close()
        if self._wandb_run is not None:
            self._wandb_run.finish()


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def start_wandb(config: TrainConfig, folder: Path, begun: str) -> Any:
    """Return a W&B run, offline when there is no login or network; None when it cannot be had at all.

    Args:
        config: of the run.
        folder: of the run.
        begun: when it first started, by which W&B tells it from others of its name.
    """
    settings = config.logging
    if settings.wandb is WandbMode.disabled:
        return None
    try:
        import wandb
    except ImportError:
        logger.warning("logging.wandb is set but wandb is not installed: pip install wandb")
        return None
    for mode in dict.fromkeys((settings.wandb.value, "offline")):
        try:
            if mode == "online" and not wandb.login(timeout=_WANDB_TIMEOUT_SECONDS):
                raise RuntimeError("no login")
            return _init_wandb(wandb, config, folder, begun, mode)
        except Exception as error:  # never a reason to fail: wandb raises many kinds
            logger.warning("W&B does not start %s (%s)", mode, error)
    return None


def _init_wandb(wandb: Any, config: TrainConfig, folder: Path, begun: str, mode: str) -> Any:
    import yaml

    name = config.logging.wandb_name or folder.name
    return wandb.init(
        project=config.logging.wandb_project,
        name=name,
        # One W&B run for one run directory, however often it is resumed.
        id=f"{re.sub('[^A-Za-z0-9_-]', '-', name)}-{re.sub('[^0-9]', '', begun)}",
        resume="allow",
        dir=str(folder),
        mode=mode,
        config=yaml.safe_load(dump_config(config)),
        settings=wandb.Settings(init_timeout=_WANDB_TIMEOUT_SECONDS, **_WANDB_RECORDS),
    )
