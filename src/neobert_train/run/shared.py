"""That all hosts of a run see one run directory, and what was just written in it."""

import contextlib
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

from neobert_train.distributed import Collectives
from neobert_train.errors import InputError
from neobert_train.files import TEMPORARY_PREFIX, wait_until_seen
from neobert_train.run.directory import RunDirectory

_PATIENCE_SECONDS = 10.0  # with a network file system that tells other hosts late


def check_shared(run: RunDirectory, collectives: Collectives) -> None:
    """Check that all hosts see what the main process writes; nothing is left behind.

    Where there is no run directory yet, the folder is looked at that it would be made in.

    Raises:
        InputError: a host sees another folder, or the folder cannot be written to; on every process.
    """
    world = collectives.world
    if world.local_world_size == world.world_size:
        return
    folders = [run.path, *run.path.parents]
    own_level = next(level for level, folder in enumerate(folders) if folder.is_dir())
    marker = folders[own_level] / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}-for-all-hosts"

    def write() -> tuple[int, str]:
        try:
            marker.touch(exist_ok=False)
        except OSError as error:
            raise run.explain(error) from error
        return own_level, marker.name

    try:
        level, name = collectives.on_main(write)
        looks = world.local_rank == 0 and not world.is_main  # one process of every other host
        sees = not looks or wait_until_seen(folders[: level + 1][-1] / name, _PATIENCE_SECONDS)
        hosts = collectives.gather((socket.gethostname(), sees))
    finally:
        if world.is_main:
            with contextlib.suppress(OSError):
                marker.unlink(missing_ok=True)
    blind = dict.fromkeys(host for host, sees in hosts if not sees)
    if blind:
        raise InputError(
            f"{', '.join(blind)} cannot see what the main process on {hosts[0][0]} writes to "
            f"{run.path}: write output_dir=... to choose a folder on a file system that all hosts share"
        )


def share_checkpoint(collectives: Collectives, find: Callable[[], Path | None]) -> Path | None:
    """Return what the main process finds, a checkpoint or None, when every process sees it.

    Raises:
        InputError: a host does not see it, or `find` raised one; on every process.
    """
    found = collectives.on_main(lambda: str(find() or ""))
    if not found:
        return None
    checkpoint = Path(found)

    def look() -> None:
        if not wait_until_seen(checkpoint, _PATIENCE_SECONDS):
            raise InputError(
                f"{socket.gethostname()} cannot see {checkpoint}, which the main process has found: "
                f"start again once it does, or write output_dir=... to choose a folder on a file "
                f"system that all hosts share"
            )

    collectives.on_all(look)
    return checkpoint
