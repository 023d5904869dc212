"""The folder in which an embedder is trained: settings, checkpoints, metrics, and at the end the model."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from neobert_train.config.embed_schema import EmbedConfig
from neobert_train.config.quoting import to_override
from neobert_train.config.saved import dump_config
from neobert_train.config.typed import Count, Finite, read_run_json
from neobert_train.errors import InputError
from neobert_train.files import (
    TEMPORARY_PREFIX,
    DamagedFileError,
    clear_drafts,
    read_text,
    remove,
    write_atomically,
    write_checked_json,
)
from neobert_train.lock import acquire_lock
from neobert_train.run.directory import RunDirectory
from neobert_train.run.metrics_file import read_metrics

# What may change from start to start: none of it changes what is learnt.
_FREE = {"output", "trust_remote_code", "mini_batch_size", "log_every_steps", "save_every_steps"}
_LOCK_WAIT_SECONDS = 2.0


@dataclass(frozen=True)
class Start:
    """What an embedder was begun from.

    Attributes:
        model: name of the encoder, for the model card.
        weights: hash of its weights.
        is_neobert: whether it is a NeoBERT.
        digests: sha256 of the texts of each set of data.
        rows: number of rows of each set.
        steps: of the whole training.
    """

    model: str
    weights: str
    is_neobert: bool
    digests: dict[str, str]
    rows: dict[str, Count]
    steps: Count


@dataclass(frozen=True)
class Result:
    """What came of a training that has ended.

    Attributes:
        steps: of the optimiser.
        rows: of data that were learnt from, with repetitions.
        loss: mean of the last logged steps, in nats.
        seconds: of the start that ended it.
    """

    steps: Count
    rows: Count
    loss: Finite | None
    seconds: Finite


class EmbedderFolder:
    """Paths inside the folder; nothing is created before `create`."""

    def __init__(self, path: str) -> None:
        self.path = Path(os.path.expanduser(path))
        self.settings_file = self.path / "embedding.yaml"
        self.start_file = self.path / "start.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.result_file = self.path / "result.json"
        # Checkpoints bear the names of those of a run.
        self.steps = RunDirectory(self.path)
        self._lock: BinaryIO | None = None

    def claim(self) -> None:
        """Keep other processes from training here, where the folder exists.

        Raises:
            InputError: another process trains here, or the folder is none of an embedder.
        """
        if self._lock is not None or not self.path.exists():
            return
        if not self.path.is_dir() or self.path.is_symlink():
            raise InputError(f"{self.path} is no folder: write output=... to choose one")
        others = {entry.name for entry in self.path.iterdir()} - {self.steps.lock_file.name}
        if others and not self.settings_file.exists():
            raise InputError(
                f"{self.path} holds other things than an embedder, such as {min(others)}: write "
                f"output=... to choose another folder"
            )
        try:
            self._lock = acquire_lock(self.steps.lock_file, _LOCK_WAIT_SECONDS, "output")
        except OSError as error:
            raise self.explain(error) from error

    def release(self) -> None:
        """Let other processes train here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def create(self, config: EmbedConfig, start: Start) -> None:
        """Make the folder, claim it, and write down what is trained.

        Raises:
            InputError: it cannot be made or written, or another process came first.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.claim()
            self.steps.checkpoints.mkdir(exist_ok=True)
            for leftover in self.steps.checkpoints.glob(f"{TEMPORARY_PREFIX}*"):
                remove(leftover)
            clear_drafts(self.path, [self.settings_file, self.start_file, self.result_file])
            write_checked_json(self.start_file, asdict(start))
            write_atomically(self.settings_file, dump_config(config))
        except OSError as error:
            raise self.explain(error) from error

    def check_settings(self, config: EmbedConfig) -> None:
        """Compare with the settings that the embedder was begun with; nothing where there is none.

        Raises:
            InputError: some are others; says what to write for each.
        """
        if not self.settings_file.exists():
            return
        try:
            saved = _flatten(yaml.safe_load(read_text(self.settings_file)))
        except (DamagedFileError, yaml.YAMLError, ValueError) as error:
            raise InputError(
                f"{self.settings_file} cannot be read ({str(error).splitlines()[0]}): restore it, or "
                f"write output=... to begin another embedder"
            ) from error
        current = _flatten(yaml.safe_load(dump_config(config)))
        lines = [
            f"  {key}: {_show(saved.get(key))} -> {_show(current.get(key))} "
            f"(write {_show_override(key, saved.get(key))})"
            for key in {**saved, **current}
            if key.partition(".")[0] not in _FREE and saved.get(key) != current.get(key)
        ]
        if lines:
            raise InputError(
                f"{self.path} holds an embedder that was begun with other settings: write these, or "
                f"output=... to begin another:\n" + "\n".join(lines)
            )

    def read_start(self) -> Start:
        """Read what the embedder was begun from.

        Raises:
            InputError: the file is missing or damaged.
        """
        fix = "restore it, or write output=... to begin another embedder"
        start: Start = read_run_json(self.start_file, Start, fix)
        return start

    def read_result(self) -> Result | None:
        """Read what came of a training that has ended; None for one that has not.

        Raises:
            InputError: the file is damaged.
        """
        if not self.result_file.exists():
            return None
        fix = "remove it, and the same command ends the training again"
        result: Result = read_run_json(self.result_file, Result, fix)
        return result

    def find_checkpoint(self) -> tuple[int, Path] | None:
        """Find step and folder of the newest checkpoint; None where there is none."""
        return next(iter(reversed(self.steps.list_checkpoints())), None)

    def cut_metrics(self, step: int) -> None:
        """Remove the metrics after a step, which will be written again.

        Raises:
            InputError: they are damaged, or the file cannot be written.
        """
        kept = [record for record in read_metrics(self.metrics_file) if record["step"] <= step]
        try:
            write_atomically(self.metrics_file, "".join(map(_to_line, kept)))
        except OSError as error:
            raise self.explain(error) from error

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Append the metrics of a step.

        Raises:
            InputError: the file cannot be written.
        """
        try:
            with open(self.metrics_file, "a", encoding="utf-8") as file:
                file.write(_to_line(record))
        except OSError as error:
            raise self.explain(error) from error

    def finish(self, result: Result) -> None:
        """Write down that the model is complete, and remove the checkpoints.

        Raises:
            InputError: the folder cannot be written.
        """
        try:
            write_checked_json(self.result_file, asdict(result))
            remove(self.steps.checkpoints)
        except OSError as error:
            raise self.explain(error) from error

    def explain(self, error: Exception) -> InputError:
        """Return what a user is told when a write into the folder has failed."""
        reason = getattr(error, "strerror", None) or str(error)
        return InputError(
            f"{self.path} cannot be written ({reason}): make room or fix its permissions; the "
            f"same command continues from the last checkpoint"
        )


def _to_line(record: Mapping[str, Any]) -> str:
    return json.dumps(dict(record)) + "\n"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _show_override(key: str, value: Any) -> str:
    return to_override(key, value) if isinstance(value, str) else f"{key}={_show(value)}"


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_show, value))}]"
    return str(value)
