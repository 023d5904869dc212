"""Fill in masked words with an exported model, through transformers alone.

python scripts/fill_mask.py FOLDER_OR_HUB_NAME ["a text with a [MASK]" ...]
"""

import sys

from transformers import logging, pipeline

TEXTS = (
    "The state of the [MASK] is strong.",
    "I ask the Congress to pass this [MASK].",
    "We must work together for peace and [MASK] in the world.",
    "The people of the United [MASK] of America.",
)


def main() -> None:
    """Print the five most probable words for every [MASK], however the model spells it."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = sys.argv[1]
    fill_mask = pipeline("fill-mask", model=model, trust_remote_code=True)
    print(f"\n{model}, loaded by transformers.pipeline, fills in:")
    for given in sys.argv[2:] or TEXTS:
        text = given.replace("[MASK]", fill_mask.tokenizer.mask_token)
        words = (f"{guess['token_str']} {guess['score']:.2f}" for guess in fill_mask(text))
        print(f"  {text:58} {', '.join(words)}")
    print(
        "\nA few minutes of training teach which words are frequent, and which kinds of words stand\n"
        "beside which. For a model that is of use, train longer on more text:\n"
        "  .venv/bin/python -m neobert_train +experiment=public_domain "
        "'data.paths=[your_texts.parquet]' data.column=text\n"
        "  .venv/bin/python -m neobert_train plan +experiment=pretrain_base"
    )


if __name__ == "__main__":
    main()
