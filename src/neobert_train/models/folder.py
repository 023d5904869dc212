"""The folder of a model, here or on the Hub."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from neobert_train.config.suggestion import find_nearest
from neobert_train.errors import InputError
from neobert_train.files import DamagedFileError, parse_json, read_text
from neobert_train.hub import HubError, download_files, pin_revision
from neobert_train.tokenizers.loading import SHIPPED_NAMES, SHIPPED_TOKENIZER

CONFIG_FILE = "config.json"
_TOKENIZER_FILE = "tokenizer_config.json"
# Everything of a model but what only other libraries read, and pickles.
_FILES = ("*.json", "*.txt", "*.model", "*.py", "*.safetensors")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_WEIGHTS_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
# What else a folder may hold, and how to get to one safetensors file.
_OTHER_WEIGHTS = {
    _INDEX_FILE: "its weights are in several files: load it with transformers, "
    "and write it with save_pretrained(FOLDER, max_shard_size='100GB')",
    "pytorch_model.bin": "pytorch_model.bin is a pickle, which is not read: load it with "
    "transformers, and write it with save_pretrained(FOLDER)",
}


def find_model_folder(name: str, label: str, with_weights: bool = True) -> Path:
    """Return the folder of a model, downloaded where its name is one on the Hub.

    Args:
        name: a folder, or a Hub name with or without `@revision`.
        label: the setting that holds it, as it was written.
        with_weights: whether weights and tokenizer are downloaded too.

    Raises:
        InputError: it is neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name in SHIPPED_NAMES and not with_weights:
        return SHIPPED_TOKENIZER
    patterns = _FILES if with_weights else [CONFIG_FILE, _TOKENIZER_FILE, "*.py"]
    try:
        return download_files(name, patterns)
    except HubError as error:
        raise InputError(
            f"{label} is neither a folder{_suggest_folder(folder)} nor a model on the Hub that can be "
            f"reached ({error})"
        ) from error


def _suggest_folder(folder: Path) -> str:
    """Return the folder that was perhaps meant, in brackets; nothing where none has nearly that name."""
    try:
        names = [each.name for each in folder.parent.iterdir() if each.is_dir()]
    except OSError:
        return ""
    nearest = find_nearest(folder.name, names)
    return f" (did you mean {folder.with_name(nearest)}?)" if nearest else ""


def pin_model(name: str, label: str, with_weights: bool = True) -> str | None:
    """Return a Hub name with the commit that it stands for now; None for a folder.

    Arguments are those of `find_model_folder`.

    Raises:
        InputError: it is neither.
    """
    folder = find_model_folder(name, label, with_weights)
    return (
        None
        if folder in (Path(name).expanduser(), SHIPPED_TOKENIZER)
        else pin_revision(name, folder)
    )


def find_context_length(folder: Path, longest: int) -> int:
    """Return how many tokens of a text a model was trained with, as far as its files say.

    Args:
        folder: of the model; the tokenizer of an export is cut to that length.
        longest: what the model can take.
    """
    try:
        values = parse_json(read_text(folder / _TOKENIZER_FILE))
    except (FileNotFoundError, DamagedFileError):
        return longest
    length = values.get("model_max_length") if isinstance(values, dict) else None
    return min(length, longest) if type(length) is int and length > 0 else longest


def load_folder_weights(folder: Path, label: str) -> dict[str, Tensor]:
    """Return the fp32 weights of a model, by parameter name.

    Raises:
        InputError: the folder holds none that can be read.
    """
    file = folder / _WEIGHTS_FILE
    check_weights(folder, label, may_be_split=False)
    try:
        return {name: tensor.float() for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def check_tokenizer(folder: Path, label: str) -> None:
    """Raise InputError, with the fix, for a folder without a tokenizer.

    transformers would make one up that knows no words.
    """
    if not any(any(folder.glob(name)) for name in _TOKENIZER_FILES):
        raise InputError(
            f"{label} has no tokenizer, which is one of {', '.join(_TOKENIZER_FILES)}: write it beside the "
            f"model with tokenizer.save_pretrained(FOLDER)"
        )


def check_weights(folder: Path, label: str, may_be_split: bool) -> None:
    """Raise InputError, with the fix, for a folder without weights in safetensors.

    Args:
        folder: of the model.
        label: what names it in messages.
        may_be_split: whether they may lie in several files.
    """
    if (folder / _WEIGHTS_FILE).is_file() or (may_be_split and (folder / _INDEX_FILE).is_file()):
        return
    others = [fix for name, fix in _OTHER_WEIGHTS.items() if (folder / name).is_file()]
    raise InputError(f"{label} holds no {_WEIGHTS_FILE}{''.join(f'; {fix}' for fix in others[:1])}")
