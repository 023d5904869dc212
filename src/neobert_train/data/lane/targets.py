"""Texts that leave nothing to predict, since the tokenizer does not know them: how to say so."""

# A vocabulary that was made for a text knows nearly all of it.
MOST_UNKNOWN = 0.05

_FIX = (
    "write another tokenizer.path, or learn a tokenizer from these documents: python -m "
    "neobert_train train_tokenizer data=... algorithm=unigram output=FOLDER (algorithm=bpe knows "
    "every character)"
)


def describe_unknown(share: float, text: str, tokenizer: str) -> str:
    """Return that a tokenizer knows too little of a text, and the fix.

    Args:
        share: of the tokens of the text, those that are [UNK].
        text: what the text is, in words.
        tokenizer: its name.
    """
    return (
        f"{share:.1%} of the tokens of {text} are [UNK], which is never predicted: the tokenizer "
        f"'{tokenizer}' does not know this text; {_FIX}"
    )


def describe_no_targets(num_text: int, num_unknown: int, text: str, tokenizer: str) -> str:
    """Return why there is nothing to predict in a text, and the fix.

    Args:
        num_text: tokens of the text, [UNK] included and other special tokens not.
        num_unknown: those that are [UNK].
        text: what the text is, in words.
        tokenizer: its name.
    """
    share = num_unknown / max(1, num_text)
    if share > MOST_UNKNOWN:
        reason = describe_unknown(share, "it", tokenizer)
    else:
        reason = (
            f"masking.rate chooses none of its {num_text:,} tokens (masking.unit=word and span "
            f"choose whole words, or none); raise masking.rate, or give more and longer documents"
        )
    return f"there is nothing to predict in {text}: {reason}"
