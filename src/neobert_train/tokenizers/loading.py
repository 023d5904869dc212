"""Where a tokenizer lies, and how its files are read, whatever library wrote them."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from neobert_train.config.data_schema import TokenizerConfig
from neobert_train.errors import InputError
from neobert_train.hub import HubError, download_files, pin_revision
from neobert_train.tokenizers.special_tokens import ROLES
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

SHIPPED_TOKENIZER = Path(__file__).resolve().parents[1] / "assets" / "bert-base-uncased"
SHIPPED_NAMES = ("bert-base-uncased", "google-bert/bert-base-uncased")

_TOKENIZER_FILE = "tokenizer.json"
# Later ones win: both are written by transformers, the first by versions before 5 only.
_ROLE_FILES = ("special_tokens_map.json", "tokenizer_config.json")
# Only a vocabulary; what cuts text into its entries is code of transformers.
_VOCABULARY_FILES = ("vocab.txt", "vocab.json", "merges.txt", "*.model")
_KIND_FILES = ("tokenizer_config.json", "config.json")
_MOST_REASON = 300  # characters of what transformers says, whose messages go over many lines


def build_tokenizer(config: TokenizerConfig) -> TextTokenizer:
    """Return the configured tokenizer.

    Raises:
        InputError: there is none, it cannot be read, or it lacks special tokens.
    """
    tokens = {role: getattr(config, f"{role}_token") for role in ROLES}
    return load_tokenizer(config.path, {role: t for role, t in tokens.items() if t is not None})


def load_tokenizer(path: str, tokens: Mapping[str, str] | None = None) -> TextTokenizer:
    """Return the tokenizer of a folder, a `tokenizer.json`, the shipped name or a Hub name.

    A Hub name may end in `@revision`.

    Args:
        path: where it lies.
        tokens: by role, special tokens that the user chose.

    Raises:
        InputError: there is none, it cannot be read, or it lacks special tokens.
    """
    local = Path(path).expanduser()
    if local.is_file():
        folder, file = local.parent, local
        declared = _read_roles(folder) if local.name == _TOKENIZER_FILE else {}
    else:
        folder = _find_folder(path)
        file, declared = folder / _TOKENIZER_FILE, _read_roles(folder)
    if file.is_file():
        tokenizer = _read_definition(file)
    else:
        tokenizer, defaults = _convert(folder, path)
        declared = {**defaults, **declared}
    return TextTokenizer(tokenizer, path, tokens, declared)


def pin_tokenizer(path: str) -> str | None:
    """Return a Hub name with the commit that it stands for now; None for what is not on the Hub.

    Raises:
        InputError: it is neither a local path nor on the Hub.
    """
    if Path(path).expanduser().exists() or path in SHIPPED_NAMES:
        return None
    return pin_revision(path, _download_folder(path))


def _find_folder(path: str) -> Path:
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    return SHIPPED_TOKENIZER if path in SHIPPED_NAMES else _download_folder(path)


def _download_folder(name: str) -> Path:
    wanted = [_TOKENIZER_FILE, *_ROLE_FILES, *_KIND_FILES, *_VOCABULARY_FILES]
    try:
        return download_files(name, wanted)
    except HubError as error:
        raise InputError(
            f"the tokenizer '{name}' is neither a folder, a tokenizer.json nor reachable on the Hub "
            f"({error}): write tokenizer.path=bert-base-uncased for the shipped one"
        ) from error


def _read_definition(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises plain Exception
        if any(file.match(pattern) for pattern in _VOCABULARY_FILES):
            raise InputError(
                f"{file} is only a vocabulary: write tokenizer.path={file.parent}, whose other "
                f"files say how text is cut into its entries"
            ) from error
        raise InputError(f"{file} cannot be read as a tokenizer.json: {error}") from error


def _read_roles(folder: Path) -> dict[str, str]:
    """Return the tokens that the files beside a `tokenizer.json` name, such as `mask` and `eos`.

    Raises:
        InputError: a file is damaged.
    """
    roles: dict[str, str] = {}
    for name in _ROLE_FILES:
        for key, value in _read_settings(folder / name).items():
            token = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(token, str):
                roles[key.removesuffix("_token")] = token
    return roles


def _read_settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{file} cannot be read as JSON ({error}): restore or remove it"
        ) from error
    return settings if isinstance(settings, dict) else {}


def _convert(folder: Path, path: str) -> tuple[Tokenizer, dict[str, str]]:
    """Return the tokenizer that transformers makes of a vocabulary, and its tokens by role.

    Raises:
        InputError: it makes none of these files; says what is missing.
    """
    found = [file.name for pattern in _VOCABULARY_FILES for file in sorted(folder.glob(pattern))]
    vocabulary = [name for name in found if not name.startswith(".")]
    if not vocabulary:
        raise InputError(
            f"the folder {path} holds no tokenizer.json, and no vocabulary "
            f"({', '.join(_VOCABULARY_FILES)}) to make one of: write another tokenizer.path"
        )
    shown = ", ".join(vocabulary)
    kinds = [_read_settings(folder / name) for name in _KIND_FILES]
    if not (kinds[0].get("tokenizer_class") or kinds[1].get("model_type")):
        raise InputError(
            f"the folder {path} holds {shown}, and nothing that says how text is cut into its entries: "
            f"put the tokenizer_config.json or config.json of its model there, or write one that "
            f'names the class of transformers, as in {{"tokenizer_class": "BertTokenizer", '
            f'"do_lower_case": false}}'
        )
    if any(name.endswith(".model") for name in vocabulary) and not _is_installed("sentencepiece"):
        raise InputError(
            f"the folder {path} holds {shown}, which the package sentencepiece reads: pip install "
            f"sentencepiece"
        )
    return _load_with_transformers(folder, path, shown)


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _load_with_transformers(
    folder: Path, path: str, shown: str
) -> tuple[Tokenizer, dict[str, str]]:
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever the code of that tokenizer raises
        reason = " ".join(str(error).split())[:_MOST_REASON] or type(error).__name__
        raise InputError(
            f"transformers cannot read the tokenizer of {path} ({shown}): {reason}; see whether its "
            f"{' or '.join(_KIND_FILES)} names the kind that these files are of"
        ) from error
    kind = type(theirs).__name__
    # Without its files a class makes a tokenizer that knows nothing.
    expected = [name for key, name in theirs.vocab_files_names.items() if key != "tokenizer_file"]
    missing = [name for name in expected if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"the folder {path} is that of a {kind}, which reads {', '.join(missing)}, and holds "
            f"{shown}: rename the file, or correct tokenizer_class in its tokenizer_config.json"
        )
    tokenizer = getattr(theirs, "backend_tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        raise InputError(
            f"the {kind} of {path} is written in Python only: write a tokenizer.path that the "
            f"tokenizers library can run"
        )
    roles = theirs.special_tokens_map.items()
    return tokenizer, {key.removesuffix("_token"): str(token) for key, token in roles}
