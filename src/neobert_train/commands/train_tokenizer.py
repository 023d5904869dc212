"""Train a tokenizer on the documents of an experiment."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from neobert_train.config.command_schema import TrainTokenizerConfig
from neobert_train.config.quoting import to_shell
from neobert_train.data.lane.targets import MOST_UNKNOWN
from neobert_train.data.training_texts import TrainingTexts
from neobert_train.run.folders import check_new_folder, new_folder
from neobert_train.terminal import print_message, print_output
from neobert_train.tokenizers.loading import SHIPPED_TOKENIZER, load_tokenizer
from neobert_train.tokenizers.text_tokenizer import TextTokenizer
from neobert_train.tokenizers.training import count_words, measure_tokenizer, train_tokenizer
from neobert_train.world import World

_SECONDS_BETWEEN_LINES = 10.0


def run(config: TrainTokenizerConfig, world: World) -> None:
    """Write the folder and print how the tokenizer compares with the shipped one.

    Raises:
        InputError: the output exists, or the source cannot be read or holds nothing.
    """
    if not world.is_main:
        return
    output = Path(config.output).expanduser()
    check_new_folder(output)
    texts = TrainingTexts(config)
    words = count_words(_show_progress(texts, config), config.algorithm, config.lowercase)
    print_message(f"learning {config.vocab_size:,} entries from {len(words):,} different words")
    tokenizer = train_tokenizer(words, config)
    with new_folder(output) as draft:
        tokenizer.save(draft, config.model.announce_length(config.batch.context_length))
    print_output(format_summary(config, texts, load_tokenizer(str(output))))


def format_summary(
    config: TrainTokenizerConfig, texts: TrainingTexts, tokenizer: TextTokenizer
) -> str:
    """Return what was learnt from what, how texts come out, and what to type next."""
    sample, kind = texts.sample
    bad = f", {texts.num_bad_records:,} bad records left out" if texts.num_bad_records else ""
    lines = [
        f"{config.output}: {config.algorithm.value}, {tokenizer.vocab_size:,} entries, learnt from "
        f"{texts.num_documents:,} documents with {texts.num_characters:,} characters{bad}",
        f"{len(sample):,} {kind} documents with {sum(map(len, sample)):,} characters:",
        f"  {'':20} {'tokens/word':>12} {'characters/token':>17} {'unknown':>9}",
    ]
    own = measure_tokenizer(tokenizer, sample)
    shipped = measure_tokenizer(load_tokenizer(str(SHIPPED_TOKENIZER)), sample)
    for name, rates in (("this tokenizer", own), (SHIPPED_TOKENIZER.name, shipped)):
        lines.append(
            f"  {name:20} {rates.tokens_per_word:>12.3f} {rates.characters_per_token:>17.3f} "
            f"{rates.unknown_share:>9.3%}"
        )
    if own.unknown_share > MOST_UNKNOWN:
        lines += [
            f"do not train with it: {own.unknown_share:.1%} of the tokens are [UNK], which is never "
            f"predicted; raise vocab_size, or take algorithm=bpe, which knows every character, with "
            f"another output=FOLDER"
        ]
    else:
        lines += [
            "train with it, on the same data=...:",
            f"  python -m neobert_train +experiment=NAME {to_shell('tokenizer.path', config.output)}",
        ]
    return "\n".join(lines)


def _show_progress(texts: TrainingTexts, config: TrainTokenizerConfig) -> Iterator[str]:
    """Yield the same texts, with a live counter on a terminal and a line now and then elsewhere."""
    if config.logging.progress and sys.stderr.isatty():
        yield from tqdm(texts, desc="reading", unit=" documents", dynamic_ncols=True)
        return
    shown = time.monotonic()
    for text in texts:
        yield text
        if time.monotonic() - shown >= _SECONDS_BETWEEN_LINES:
            shown = time.monotonic()
            print_message(
                f"read {texts.num_documents:,} documents, {texts.num_characters:,} characters"
            )
