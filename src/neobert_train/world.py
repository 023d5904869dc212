"""Which process of how many this is, read from the launcher's environment without torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """One process among those that train together.

    `rank` counts over all hosts, `local_rank` over the `local_world_size` processes of this host.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @classmethod
    def from_environment(cls) -> "World":
        """The world that `deepspeed` or `torchrun` announce; a single process without them."""
        return cls(
            rank=int(os.environ.get("RANK", 0)),
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
            world_size=int(os.environ.get("WORLD_SIZE", 1)),
            local_world_size=int(
                os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1
            ),
        )

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes files and talks to the terminal."""
        return self.rank == 0

    def lanes(self, num_lanes: int) -> list[int]:
        """The lanes this process serves: those with `lane % world_size == rank`."""
        return list(range(self.rank, num_lanes, self.world_size))


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
