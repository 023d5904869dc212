"""Text to token ids."""

import functools
import hashlib
import json
import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from neobert_train.errors import InputError
from neobert_train.tokenizers.long_texts import split_text
from neobert_train.tokenizers.special_tokens import SpecialTokens, find_model_unk, find_spellings
from neobert_train.tokenizers.spelled_tokens import build_without_special, is_reachable
from neobert_train.world import World

logger = logging.getLogger(__name__)

Entry = TypeVar("Entry")

# Of one call to the library: enough to amortise its overhead, within bounded memory.
MOST_ENTRIES = 64
ENOUGH_CHARACTERS = 1 << 20

# Of transformers; any version makes it from `tokenizer.json`.
TOKENIZER_CLASS = "PreTrainedTokenizerFast"

# Of Gothic, Old Church Slavonic and Chinese: only bytes know all of them.
_RARE_LETTERS = ("\U00010348", "\ua66e", "\u4db5")


class EncodingError(InputError):
    """The tokenizer cannot encode a text.

    Attributes:
        index: of the text among those given.
    """

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class TextTokenizer:
    """A `tokenizer.json` with the special tokens that masked language modelling needs.

    Special tokens spelled out in a document are tokenised as the text they are, and a text always
    gets the same ids: what a file says of dropout is not followed.

    Attributes:
        name: what it was loaded by.
        vocab_size: the largest id plus one, special tokens included.
        special: ids of the special tokens.
        spellings: of the special tokens, by role; `unk` may be left out.
        special_ids: [num_special] int64, ids of all special tokens, ascending.
        fingerprint: sha256 of all that decides which ids a text gets.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        name: str,
        wanted: Mapping[str, str] | None = None,
        declared: Mapping[str, str] | None = None,
    ) -> None:
        """Take over a tokenizer of the library.

        Args:
            tokenizer: is changed.
            name: for messages.
            wanted: by role, tokens that the user chose.
            declared: by role, tokens that files beside a `tokenizer.json` name.

        Raises:
            InputError: the vocabulary has no token for a role.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        _switch_off_sampling(tokenizer, name)
        self._tokenizer = tokenizer
        self.name = name
        definition = json.loads(self.to_json())
        model_unk = find_model_unk(definition["model"])
        self.spellings = find_spellings(tokenizer, name, model_unk, wanted or {}, declared or {})
        ids = {role: self._find_id(token) for role, token in self.spellings.items()}
        unk = None if model_unk is None else self._find_id(model_unk)
        self.special = SpecialTokens(ids["pad"], unk, ids["cls"], ids["sep"], ids["mask"])
        added = tokenizer.get_added_tokens_decoder()
        specials = {token.content: index for index, token in added.items() if token.special}
        specials |= {token: ids[role] for role, token in self.spellings.items()}
        self.special_ids = np.array(sorted(set(specials.values())), dtype=np.int64)
        canonical = json.dumps(definition, sort_keys=True)
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
        self._encoder = tokenizer
        if is_reachable(tokenizer, specials, unk):
            self._encoder = build_without_special(definition, specials, self.fingerprint)
            # Not the ids that the definition alone gives.
            self.fingerprint = hashlib.sha256(self._encoder.to_str().encode()).hexdigest()
        self.vocab_size = max(self.get_vocabulary().values()) + 1
        if unk is None and self._leaves_out_unknown():
            _warn_once(
                f"the tokenizer '{name}' has no entry for characters that its vocabulary lacks, and "
                f"leaves them out of the text without a trace"
            )

    def _leaves_out_unknown(self) -> bool:
        try:
            return not any(ids.size for ids in self.encode(_RARE_LETTERS))
        except EncodingError:  # it cannot encode them at all, and says so when they come
            return False

    def _find_id(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        assert index is not None
        return int(index)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text without special tokens, [num_tokens] int32.

        Long texts are tokenised in pieces, so that memory stays near that of texts and ids.

        Raises:
            EncodingError: one of the texts cannot be encoded.
        """
        try:
            return self._encode(texts)
        except BaseException as error:
            if not _is_of_library(error):
                raise
            raise self._find_failure(texts) from error

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        ids: list[list[np.ndarray]] = [[] for _ in texts]
        pieces = (
            (index, piece)
            for index, text in enumerate(texts)
            for piece in split_text(text, self._tokenize)
        )
        for group in iter_groups(pieces, lambda piece: len(piece[1])):
            batch = [piece for _, piece in group]
            encodings = self._encoder.encode_batch_fast(batch, add_special_tokens=False)
            for (index, _), encoding in zip(group, encodings, strict=True):
                ids[index].append(np.array(encoding.ids, dtype=np.int32))
        return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in ids]

    def _tokenize(self, text: str) -> list[int]:
        return list(self._encoder.encode(text, add_special_tokens=False).ids)

    def _find_failure(self, texts: Sequence[str]) -> EncodingError:
        """Return what is wrong with the first text that fails by itself; a batch fails as a whole."""
        for index, text in enumerate(texts):
            try:
                self._encode([text])
            except BaseException as error:
                if not _is_of_library(error):
                    raise
                return EncodingError(
                    f"the tokenizer '{self.name}' (tokenizer.path) cannot encode it: {error}; "
                    f"correct the tokenizer.json, or write another tokenizer.path",
                    index,
                )
        raise AssertionError("the texts were encoded one by one, and not together")

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens spelled out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def get_vocabulary(self) -> dict[str, int]:
        """Return the id of every token by its spelling, special tokens included."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def gives_same_ids_as(self, other: "TextTokenizer") -> bool:
        """Return whether every text gets the same ids from both, special tokens included.

        What `save` adds for other readers makes no difference.
        """
        own = (self.special, self.vocab_size, _find_deciding(json.loads(self.to_json())))
        return own == (
            other.special,
            other.vocab_size,
            _find_deciding(json.loads(other.to_json())),
        )

    def to_json(self) -> str:
        """Return the text of its `tokenizer.json`."""
        return str(self._tokenizer.to_str())

    def save(self, folder: Path, max_length: int) -> None:
        """Write the files that `AutoTokenizer.from_pretrained(folder)` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        exported = Tokenizer.from_str(self.to_json())
        # Text that is given to the exported tokenizer may spell them, whether or not they were
        # special tokens before.
        added = exported.get_added_tokens_decoder().values()
        missing = set(self.spellings.values()) - {token.content for token in added}
        exported.add_special_tokens(sorted(missing))
        exported.post_processor = self._frame_documents()
        # Written here, so that a full disk is an OSError.
        text = exported.to_str(pretty=True)
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        settings = {
            "tokenizer_class": TOKENIZER_CLASS,
            "model_max_length": max_length,
            "model_input_names": ["input_ids", "attention_mask"],
            **{f"{role}_token": token for role, token in self.spellings.items()},
        }
        text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

    def _frame_documents(self) -> TemplateProcessing:
        """Put [CLS] before and [SEP] behind, as in training, whatever the file says."""
        cls, sep = self.spellings["cls"], self.spellings["sep"]
        return TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(cls, self.special.cls), (sep, self.special.sep)],
        )


def _find_deciding(definition: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a definition that decide the ids of a text without special tokens."""
    added = [token for token in definition["added_tokens"] if not token["special"]]
    parts = {name: definition[name] for name in ("normalizer", "pre_tokenizer", "model")}
    return {**parts, "added_tokens": added}


def _is_of_library(error: BaseException) -> bool:
    """Return whether the Rust library raised it: a plain Exception, or a panic (no Exception)."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


def _switch_off_sampling(tokenizer: Tokenizer, name: str) -> None:
    """Set what makes the ids of a text random to none: BPE dropout, sampling from a Unigram."""
    for setting in ("dropout", "alpha", "nbest_size"):
        if value := getattr(tokenizer.model, setting, None):
            setattr(tokenizer.model, setting, None)
            _warn_once(
                f"the tokenizer '{name}' asks for random tokens (model.{setting}={value:g}): switched "
                f"off, since the same text has to give the same tokens whenever it is read"
            )


@functools.cache  # however often a tokenizer is loaded
def _warn_once(message: str) -> None:
    """Warn in the main process of a run, and in no process that it starts."""
    if multiprocessing.parent_process() is None and World.from_environment().is_main:
        logger.warning("%s", message)


def iter_groups(
    entries: Iterable[Entry],
    count_characters: Callable[[Entry], int],
    enough: int = ENOUGH_CHARACTERS,
    first: int = MOST_ENTRIES,
) -> Iterator[list[Entry]]:
    """Yield entries in groups of up to 64, none empty; an error comes after what was read before it.

    Args:
        entries: in order; none is read beyond a group before the group is given.
        count_characters: of an entry.
        enough: characters with which a group ends, whatever its number of entries.
        first: entries of the first group; the next ones double.
    """
    group: list[Entry] = []
    characters, most_entries = 0, first
    try:
        for entry in entries:
            group.append(entry)
            characters += count_characters(entry)
            if len(group) == most_entries or characters >= enough:
                yield group
                group, characters = [], 0
                most_entries = min(2 * most_entries, MOST_ENTRIES)
    except (InputError, OSError):
        if group:
            yield group
        raise
    if group:
        yield group
