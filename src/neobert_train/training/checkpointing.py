"""Writing checkpoints in the background, one at a time."""

import threading
from collections.abc import Callable

from neobert_train.checkpoint import Checkpoint, prune_checkpoints, save_checkpoint
from neobert_train.config.schema import TrainConfig
from neobert_train.data.tokenization import TextTokenizer
from neobert_train.run_directory import RunDirectory


class CheckpointWriter:
    """Writes what it is given while training goes on.

    Args:
        run: the run directory.
        config, tokenizer: written into every checkpoint.
        on_written: called in the writing thread after each checkpoint.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: TrainConfig,
        tokenizer: TextTokenizer,
        on_written: Callable[[], None] | None = None,
    ) -> None:
        self._run, self._config, self._tokenizer = run, config, tokenizer
        self._on_written = on_written
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def write(self, checkpoint: Checkpoint) -> None:
        """Begin to write; waits for the one before.

        Raises:
            OSError: the one before could not be written.
        """
        self.join()
        self._thread = threading.Thread(target=self._write, args=(checkpoint,), name="checkpoint")
        self._thread.start()

    def join(self) -> None:
        """Wait until nothing is being written.

        Raises:
            OSError: the last one could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            save_checkpoint(self._run, checkpoint, self._config, self._tokenizer)
            prune_checkpoints(self._run, self._config.checkpoint.keep_last)
            if self._on_written is not None:
                self._on_written()
        except BaseException as error:  # handed to the training thread by `join`
            self._error = error
