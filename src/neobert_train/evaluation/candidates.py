"""Models that are compared: each a folder that Hugging Face loads, with what tells it from others."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from neobert_train.errors import InputError
from neobert_train.files import hash_file, hash_json
from neobert_train.models.exported import find_exported, register_neobert
from neobert_train.models.folder import find_context_length
from neobert_train.models.hugging_face_parts import find_first_position
from neobert_train.run.directory import RunDirectory

_STEP = re.compile(r"(?P<run>.+)@(?P<step>[0-9]+)")
# What decides the numbers of a model beside its weights.
_HASHED = re.compile(r".*\.(safetensors|bin|json|py|txt|model)")
_UNBOUNDED = 1 << 20


@dataclass(frozen=True)
class Candidate:
    """A model that is compared.

    Attributes:
        label: as tables show it.
        folder: that Hugging Face loads.
        digest: hash of its files.
        weights: hash of its weights.
        max_length: most tokens of a text.
        num_parameters: of the encoder without a head.
        trust_remote_code: whether code in the folder may run.
        marks: of its files when they were hashed.
    """

    label: str
    folder: Path
    digest: str
    weights: str
    max_length: int
    num_parameters: int
    trust_remote_code: bool
    marks: list[tuple[str, int, int]] = field(default_factory=list, compare=False)

    def find_marks(self) -> list[tuple[str, int, int]]:
        """Return name, size and time of its files, which are others once a file is."""
        return _find_marks(self.folder)

    def load_tokenizer(self, of_words: bool = False) -> PreTrainedTokenizerBase:
        """Load its tokenizer; what it cuts is up to the caller.

        Args:
            of_words: whether it gets words one by one, which byte-level tokenizers take for the middle
                of others unless a space stands before each.
        """
        options = {"add_prefix_space": True} if of_words else {}
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            self.folder, trust_remote_code=self.trust_remote_code, **options
        )
        return tokenizer

    def load_encoder(self, folder: Path | None = None) -> PreTrainedModel:
        """Load the encoder without a head, in fp32, from its own folder or one fine-tuned from it."""
        register_neobert()
        network: PreTrainedModel = AutoModel.from_pretrained(
            folder or self.folder, trust_remote_code=self.trust_remote_code, dtype="float32"
        )
        return network


def load_candidates(
    names: Sequence[str], exports: Path, trust_remote_code: bool
) -> list[Candidate]:
    """Find all models that `models=[...]` names, in their order.

    Runs come last, since their checkpoints are exported: nothing is written where another model does
    not exist.

    Raises:
        InputError: some cannot be used, and why; or two are the same.
    """
    found: dict[str, Candidate] = {}
    runs = [name for name in names if RunDirectory(_split_step(name)[0]).list_checkpoints()]
    for part in ([name for name in names if name not in runs], runs):
        problems: list[str] = []
        for name in part:
            try:
                found[name] = load_candidate(name, exports, trust_remote_code)
            except InputError as error:
                problems.append(str(error))
        if problems:
            raise InputError.from_problems(problems)
    candidates = [found[name] for name in names]
    labels = [candidate.label for candidate in candidates]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise InputError(f"models=[...] names {twice} twice: name it once")
    return candidates


def _split_step(name: str) -> tuple[str, int | None]:
    """Split `RUN@STEP`; of other names, with revisions of the Hub that are numbers, there is no step."""
    match = _STEP.fullmatch(name)
    if match and not Path(name).is_dir() and RunDirectory(match["run"]).list_checkpoints():
        return match["run"], int(match["step"])
    return name, None


def load_candidate(name: str, exports: Path, trust_remote_code: bool) -> Candidate:
    """Find the model that `models=[...]` names.

    Args:
        name: a run directory, with or without `@STEP`, an exported or other folder, or a Hub name.
        exports: folder into which checkpoints of runs are exported.
        trust_remote_code: whether code that comes with a model may run.

    Raises:
        InputError: there is no such model, it lacks weights or a tokenizer, or it comes with code.
    """
    label = f"models=[{name}]"
    run_name, step = _split_step(name)
    exported = find_exported(run_name, label, step, exports, trust_remote_code)
    folder = exported.folder
    if exported.step is not None:
        name = f"{run_name}@{exported.step}"
    register_neobert()
    marks = _find_marks(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            network = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
        positions = getattr(config, "max_position_embeddings", None) or _UNBOUNDED
        longest = find_context_length(folder, positions - find_first_position(network))
        size = sum(parameter.numel() for parameter in network.parameters())
        digest = _hash_files(folder)
        candidate = Candidate(
            name, folder, digest, exported.weights, longest, size, trust_remote_code, marks
        )
        candidate.load_tokenizer()
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{label} cannot be loaded: {reason}") from error
    return candidate


def _list_files(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if _HASHED.fullmatch(path.name))
    return sorted(path for path in files if path.is_file())


def _find_marks(folder: Path) -> list[tuple[str, int, int]]:
    files = [(path.name, path.stat()) for path in _list_files(folder)]
    return [(name, found.st_size, found.st_mtime_ns) for name, found in files]


def _hash_files(folder: Path) -> str:
    files = _list_files(folder)
    return hash_json([[str(p.relative_to(folder)), hash_file(p.resolve())] for p in files])
