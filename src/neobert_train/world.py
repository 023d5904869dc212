"""Which process of how many this is, read from the launcher's environment without torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from neobert_train.errors import InputError


@dataclass(frozen=True)
class World:
    """One process among those that train together.

    `rank` counts over all hosts, `local_rank` over the `local_world_size` processes of this host.
    `launcher` is the process that started this one as one of several, None without a launcher.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    launcher: int | None = None

    @classmethod
    def from_environment(cls) -> "World":
        """Return the world that `deepspeed` or `torchrun` announce; a single process without them.

        Raises:
            InputError: a variable of the launcher holds something else than a sensible number.
        """
        world_size = _read_number("WORLD_SIZE", default=1, at_least=1)
        return cls(
            rank=_read_number("RANK", default=0, at_least=0),
            local_rank=_read_number("LOCAL_RANK", default=0, at_least=0),
            world_size=world_size,
            # torchrun and deepspeed differ in how they call this.
            local_world_size=_read_number(
                "LOCAL_WORLD_SIZE", _read_number("LOCAL_SIZE", default=1, at_least=1), at_least=1
            ),
            launcher=os.getppid() if world_size > 1 else None,
        )

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes files and talks to the terminal."""
        return self.rank == 0

    def lanes(self, num_lanes: int) -> list[int]:
        """Return the lanes this process serves: those with `lane % world_size == rank`."""
        return list(range(self.rank, num_lanes, self.world_size))


def _read_number(variable: str, default: int, at_least: int) -> int:
    text = os.environ.get(variable, "")
    if text and (not text.isdigit() or int(text) < at_least):
        raise InputError(
            f"the environment variable {variable}={text} must be a number of at least {at_least}: "
            f"launchers set it; unset it to start a single process"
        )
    return int(text) if text else default


def strip_launcher_arguments(arguments: Sequence[str]) -> list[str]:
    """Drop `--local_rank=i` and `--local-rank i`, which launchers append to every command."""
    kept: list[str] = []
    skip_value = False
    for argument in arguments:
        if skip_value:
            skip_value = False
        elif argument in ("--local_rank", "--local-rank"):
            skip_value = True
        elif not argument.startswith(("--local_rank=", "--local-rank=")):
            kept.append(argument)
    return kept
