"""What makes an exported folder a model of sentence-transformers."""

import json
from pathlib import Path
from typing import Any

from neobert_train.config.embed_schema import Pooling


def write_pooling(
    folder: Path, width: int, pooling: Pooling, context_length: int, pool_prompts: bool = True
) -> None:
    """Make the folder a model of sentence-transformers, which embeds texts.

    Without these files `SentenceTransformer` takes the mean over tokens by itself, and `SparseEncoder`
    builds SPLADE on the vocabulary; with them it builds another model. The names are those of version 5,
    which later ones know too.

    Args:
        folder: of the export.
        width: of the hidden states.
        pooling: what makes one vector of those of the tokens.
        context_length: tokens after which texts are cut.
        pool_prompts: whether the tokens of a prompt count in a mean.
    """
    package = "sentence_transformers.models"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{package}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{package}.Pooling"},
    ]
    settings = {
        "word_embedding_dimension": width,
        "pooling_mode_mean_tokens": pooling is Pooling.mean,
        "pooling_mode_cls_token": pooling is Pooling.cls,
    }
    if not pool_prompts:
        settings["include_prompt"] = False
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": context_length})
    (folder / "1_Pooling").mkdir(exist_ok=True)
    _write_json(folder / "1_Pooling" / "config.json", settings)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
