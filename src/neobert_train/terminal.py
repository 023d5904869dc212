"""All that is printed passes here: it never ends a command, and never acts on the terminal."""

import contextlib
import logging
import os
import re
import sys
from typing import Any

from neobert_train.urls import hide_credentials

# Line ends and tabs may stay. What turns the direction of writing can make a text look like another.
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escape_controls(text: str) -> str:
    """Return the text with control characters and lone surrogates as escapes such as `\\x1b`.

    File names, JSON keys and documents may hold what moves the cursor or writes the clipboard.
    """
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def print_output(text: str) -> None:
    """Print what a command was asked for, on standard output."""
    _print(sys.stdout, text)


def print_message(text: str) -> None:
    """Print what concerns the person at the terminal, on standard error, URLs without credentials."""
    _print(sys.stderr, hide_credentials(text))


def _print(stream: Any, text: str) -> None:
    tolerant = _TolerantStream(stream)
    tolerant.write(f"{escape_controls(text)}\n")
    tolerant.flush()


class _TolerantStream:
    """A text stream that loses what it cannot write, and escapes what its encoding lacks.

    A log on a full disk, a closed terminal and a reader such as `head` are no reason to fail.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if self._stream is None:  # Python's word for a stream that was closed from the start
            return len(text)
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoded = text.encode(self._stream.encoding, "backslashreplace")
            return self.write(encoded.decode(self._stream.encoding))
        except (OSError, ValueError):  # ValueError: it was closed since
            pass
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def protect_streams() -> None:
    """Let nothing that this process prints fail, by whatever library: progress bars, Hydra, wandb.

    Descriptors of standard streams that are closed would be given to the next files opened, and
    what a library writes to its standard error would land in a checkpoint.
    """
    for number, mode, name in ((0, "r", "stdin"), (1, "w", "stdout"), (2, "w", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    if not isinstance(sys.stdout, _TolerantStream):
        sys.stdout = _TolerantStream(sys.stdout)
    if not isinstance(sys.stderr, _TolerantStream):
        sys.stderr = _TolerantStream(sys.stderr)


class _MessageHandler(logging.Handler):
    """Prints log records as `LEVEL: message`, URLs without what may be secret in them."""

    def emit(self, record: logging.LogRecord) -> None:
        print_message(hide_credentials(self.format(record)))


def show_warnings() -> None:
    """Print our own warnings, and those of libraries that nobody has set up logging for."""
    handler = _MessageHandler(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.lastResort = handler
    logger = logging.getLogger("neobert_train")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING)
