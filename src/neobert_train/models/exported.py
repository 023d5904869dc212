"""A model as a folder that transformers loads, whatever names it: a run, a folder or the Hub."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from neobert_train.config.model_schema import NeoBERTModelConfig
from neobert_train.errors import InputError
from neobert_train.files import hash_file
from neobert_train.hub import pin_revision
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.modeling.modeling_neobert import NeoBERT
from neobert_train.models.families import FAMILIES, find_family
from neobert_train.models.folder import check_weights, find_model_folder
from neobert_train.models.loading import load_trained
from neobert_train.run.checkpoint_search import read_weights_digest
from neobert_train.run.directory import RunDirectory


@dataclass(frozen=True)
class ExportedModel:
    """A folder with weights, configuration and tokenizer.

    Attributes:
        folder: that transformers loads.
        identity: what tells it from other models: sha256 of its weights.
        origin: what a model card names as its base: `org/name` with its commit, or the name of a folder.
        is_neobert: whether our own classes compute it, and none of its code has to run.
    """

    folder: Path
    identity: str
    origin: str
    is_neobert: bool


@contextmanager
def open_exported(
    name: str, label: str, step: int | None = None, trust_remote_code: bool = False
) -> Iterator[ExportedModel]:
    """Open a model as a folder: that of a run is written to a temporary one, as `export` does.

    Args:
        name: a run directory, a folder, or a Hub name with or without `@revision`.
        label: the setting that holds it, as it was written.
        step: of a run's checkpoint; None for the newest sound one.
        trust_remote_code: whether code that lies in the folder may run.

    Raises:
        InputError: it is none of these, or holds no model that can be loaded without what is not allowed.
    """
    run = RunDirectory(name)
    if run.list_checkpoints():
        trained = load_trained(run, step)
        with tempfile.TemporaryDirectory(prefix="neobert_train-") as temporary:
            folder = Path(temporary) / "model"
            trained.write(folder)
            is_neobert = isinstance(trained.config.model, NeoBERTModelConfig)
            title = (
                f"{run.path.resolve().name}, step {int(trained.checkpoint.name.partition('-')[2])}"
            )
            digest = read_weights_digest(trained.checkpoint)
            del trained
            yield ExportedModel(folder, digest, title, is_neobert)
        return
    if step is not None:
        raise InputError(
            f"step={step} belongs to a run directory, and {label} is none: leave it out"
        )
    folder = Path(name).expanduser()
    origin = folder.resolve().name
    if not folder.is_dir():
        folder = find_model_folder(name, label)
        origin = pin_revision(name, folder)
    family = find_family(folder, label, trust_remote_code)
    check_weights(folder, label, may_be_split=True)
    is_neobert = family is FAMILIES[NeoBERTModelConfig]
    yield ExportedModel(folder, _hash_weights(folder), origin, is_neobert)


def register_neobert() -> None:
    """Let transformers load a NeoBERT by the classes of this package, and run no code of its folder."""
    AutoConfig.register(NeoBERTConfig.model_type, NeoBERTConfig, exist_ok=True)
    AutoModel.register(NeoBERTConfig, NeoBERT, exist_ok=True)
    AutoModelForMaskedLM.register(NeoBERTConfig, NeoBERTForMaskedLM, exist_ok=True)


def _hash_weights(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return hash_file(files[0])
    return hashlib.sha256("".join(map(hash_file, files)).encode()).hexdigest()
