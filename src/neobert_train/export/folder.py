"""Checkpoints of runs as folders that Hugging Face loads, for what is measured or trained further."""

from pathlib import Path

from neobert_train.lock import acquire_lock
from neobert_train.models.loading import load_trained
from neobert_train.run.checkpoint_search import read_weights_digest
from neobert_train.run.directory import RunDirectory
from neobert_train.run.folders import new_folder

_CHARACTERS_OF_DIGEST = 12
# An export of a large model to a slow disk by another process.
_SECONDS_OF_ANOTHER = 600.0


def export_run(run: RunDirectory, step: int | None, exports: Path) -> tuple[Path, int]:
    """Write a checkpoint as a folder below `exports`, unless it is there.

    Args:
        run: the run directory.
        step: of the checkpoint; None for the newest sound one.
        exports: made where it is missing; several processes may share it.

    Returns:
        The folder, and the step.

    Raises:
        InputError: there is no such checkpoint, or the folder cannot be written.
    """
    trained = load_trained(run, step)
    digest = read_weights_digest(trained.checkpoint)
    name = f"{run.path.resolve().name}-{trained.checkpoint.name}-{digest[:_CHARACTERS_OF_DIGEST]}"
    exports.mkdir(parents=True, exist_ok=True)
    with acquire_lock(exports / ".lock", _SECONDS_OF_ANOTHER, "output"):
        if not (exports / name).is_dir():
            with new_folder(exports / name) as draft:
                trained.write(draft)
    return exports / name, int(trained.checkpoint.name.rpartition("-")[2])
