"""Writing checkpoints in the background, one at a time."""

import threading
import time
from collections.abc import Callable, Sequence

from neobert_train.config.schema import TrainConfig
from neobert_train.run.checkpoint import (
    Checkpoint,
    UnsoundNumberError,
    prune_checkpoints,
    save_checkpoint,
)
from neobert_train.run.directory import RunDirectory
from neobert_train.tokenizers.text_tokenizer import TextTokenizer


class CheckpointWriter:
    """Writes what it is given while training continues.

    Args:
        run: the run directory.
        config, tokenizer: written into every checkpoint.
        on_written: called in the writing thread after each checkpoint.

    Attributes:
        failure: why the last attempt failed, for a full disk or the like, and what to do; None once one
            succeeds.
        write_seconds: how long the last one took.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: TrainConfig,
        tokenizer: TextTokenizer,
        on_written: Sequence[Callable[[], None]] = (),
    ) -> None:
        self._run, self._config, self._tokenizer = run, config, tokenizer
        self._on_written = on_written
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.failure: str | None = None
        self.write_seconds = 0.0

    def write(self, checkpoint: Checkpoint) -> None:
        """Begin to write; waits for the one before."""
        self.join()
        self._thread = threading.Thread(target=self._write, args=(checkpoint,), name="checkpoint")
        self._thread.start()

    def join(self) -> None:
        """Wait until nothing is being written; what failed but for the disk is raised here."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, checkpoint: Checkpoint) -> None:
        started, name = time.monotonic(), f"the checkpoint of step {checkpoint.state.step}"
        try:
            save_checkpoint(self._run, checkpoint, self._config, self._tokenizer)
            self.failure = None
            prune_checkpoints(self._run, self._config.checkpoint, checkpoint.state.step)
            for function in self._on_written:
                function()
        except OSError as error:
            self.failure = f"{name} cannot be written: {error}: make room or fix the permissions"
        except UnsoundNumberError as error:
            self.failure = (
                f"{name} is not written: {error}: the run has diverged; lower optimizer.lr, or go back "
                f"with divergence.action=rewind"
            )
        except BaseException as error:  # handed to the training thread by `join`
            self._error = error
        self.write_seconds = time.monotonic() - started
