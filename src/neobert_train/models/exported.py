"""A model as a folder that transformers loads, whatever names it: a run, a folder or the Hub."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from neobert_train.config.model_schema import NeoBERTModelConfig
from neobert_train.errors import InputError
from neobert_train.files import hash_file, hash_json
from neobert_train.hub import pin_revision
from neobert_train.lock import acquire_lock
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.modeling.modeling_neobert import NeoBERT
from neobert_train.models.families import FAMILIES, find_family
from neobert_train.models.folder import check_tokenizer, check_weights, find_model_folder
from neobert_train.models.loading import load_trained
from neobert_train.run.checkpoint_search import read_weights_digest
from neobert_train.run.directory import RunDirectory
from neobert_train.run.folders import new_folder

_CHARACTERS_OF_DIGEST = 12
# An export of a large model to a slow disk by another process.
_SECONDS_OF_ANOTHER = 600.0


@dataclass(frozen=True)
class ExportedModel:
    """A folder with weights, configuration and tokenizer.

    Attributes:
        folder: that transformers loads.
        weights: hash of its weights, by which it is known to be the same model.
        origin: what a model card names as its base: `org/name` with its commit, or the name of a folder.
        is_neobert: whether our own classes compute it, and none of its code has to run.
        step: of the run that it is a checkpoint of; None for what is none.
    """

    folder: Path
    weights: str
    origin: str
    is_neobert: bool
    step: int | None = None


@contextmanager
def open_exported(
    name: str, label: str, step: int | None = None, trust_remote_code: bool = False
) -> Iterator[ExportedModel]:
    """Open a model as `find_exported` does: a checkpoint of a run is written to a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="neobert_train-") as temporary:
        yield find_exported(name, label, step, Path(temporary), trust_remote_code)


def find_exported(
    name: str, label: str, step: int | None, exports: Path, trust_remote_code: bool = False
) -> ExportedModel:
    """Find a model as a folder; a checkpoint of a run is written as `export` does, unless it is there.

    Args:
        name: a run directory, a folder, or a Hub name with or without `@revision`.
        label: the setting that holds it, as it was written.
        step: of a run's checkpoint; None for the newest sound one.
        exports: folder for checkpoints of runs, made where it is missing; processes may share it.
        trust_remote_code: whether code that lies in the folder may run.

    Raises:
        InputError: it is none of these, or lacks what loading it needs without what is not allowed.
    """
    run = RunDirectory(name)
    if run.list_checkpoints():
        folder, step = _write_checkpoint(run, step, exports)
        origin = f"{run.path.resolve().name}, step {step}"
    elif step is not None:
        raise InputError(
            f"step={step} belongs to a run directory, and {label} is none: leave it out"
        )
    else:
        folder = Path(name).expanduser()
        origin = folder.resolve().name
        if not folder.is_dir():
            folder = find_model_folder(name, label)
            origin = pin_revision(name, folder)
    is_neobert = find_family(folder, label, trust_remote_code) is FAMILIES[NeoBERTModelConfig]
    check_weights(folder, label, may_be_split=True)
    if is_neobert or not trust_remote_code:
        check_tokenizer(folder, label)
    return ExportedModel(folder, hash_weights(folder), origin, is_neobert, step)


def _write_checkpoint(run: RunDirectory, step: int | None, exports: Path) -> tuple[Path, int]:
    trained = load_trained(run, step)
    digest = read_weights_digest(trained.checkpoint)[:_CHARACTERS_OF_DIGEST]
    folder = exports / f"{run.path.resolve().name}-{trained.checkpoint.name}-{digest}"
    exports.mkdir(parents=True, exist_ok=True)
    with acquire_lock(exports / ".lock", _SECONDS_OF_ANOTHER, "output"):
        if not folder.is_dir():
            with new_folder(folder) as draft:
                trained.write(draft)
    return folder, int(trained.checkpoint.name.rpartition("-")[2])


def hash_weights(folder: Path) -> str:
    """Return a hash of the weights in a folder, by which results are known to be a model's."""
    return hash_json([hash_file(file.resolve()) for file in sorted(folder.glob("*.safetensors"))])


def register_neobert() -> None:
    """Let transformers load a NeoBERT by the classes of this package, and run no code of its folder."""
    AutoConfig.register(NeoBERTConfig.model_type, NeoBERTConfig, exist_ok=True)
    AutoModel.register(NeoBERTConfig, NeoBERT, exist_ok=True)
    AutoModelForMaskedLM.register(NeoBERTConfig, NeoBERTForMaskedLM, exist_ok=True)
