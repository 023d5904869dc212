"""What a user is told: errors with their fix, and the exit codes of the program."""

from collections.abc import Sequence

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_STOPPED = 3


class InputError(Exception):
    """The configuration or the input is wrong; shown without a traceback, exit code 2.

    The message names the key, file or record and says what to write instead.
    """

    @classmethod
    def from_problems(cls, problems: Sequence[str]) -> "InputError":
        """Return one error that lists every problem found."""
        if len(problems) == 1:
            return cls(problems[0])
        lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
        return cls(f"{len(problems)} problems were found:\n{lines}")
