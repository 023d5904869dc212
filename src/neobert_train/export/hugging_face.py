"""The exported folder: weights, configuration, the model's code and the tokenizer."""

import json
from pathlib import Path
from typing import Any

from neobert_train.config.command_schema import Pooling
from neobert_train.export.remote_code import AUTO_MAP, write_remote_code
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.run.checkpoint import save_tensors
from neobert_train.tokenizers.text_tokenizer import TOKENIZER_CLASS, TextTokenizer


def write_model_folder(
    folder: Path, model: NeoBERTForMaskedLM, tokenizer: TextTokenizer, context_length: int
) -> None:
    """Write what `AutoModel...from_pretrained(folder, trust_remote_code=True)` needs.

    Args:
        folder: is made where it is missing.
        model: with fp32 weights, which are written under the published names.
        tokenizer: written for `AutoTokenizer`.
        context_length: tokens to which a tokenizer cuts texts when asked to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(weights, folder / "model.safetensors", {"format": "pt"})
    config = model.config.to_diff_dict()
    config |= {"architectures": ["NeoBERTForMaskedLM"], "auto_map": AUTO_MAP, "dtype": "float32"}
    special = tokenizer.special
    config |= {
        # Without it pipelines of transformers 4.48 leave the tokenizer out.
        "tokenizer_class": TOKENIZER_CLASS,
        "cls_token_id": special.cls,
        "sep_token_id": special.sep,
        "mask_token_id": special.mask,
    }
    _write_json(folder / "config.json", dict(sorted(config.items())))
    write_remote_code(folder)
    tokenizer.save(folder, context_length)


def write_pooling(folder: Path, width: int, pooling: Pooling, context_length: int) -> None:
    """Make the folder a model of sentence-transformers, which embeds texts.

    Without these files `SentenceTransformer` takes the mean over tokens by itself, and `SparseEncoder`
    builds SPLADE on the vocabulary; with them it builds another model.

    Args:
        folder: of the export.
        width: of the hidden states.
        pooling: what makes one vector of those of the tokens.
        context_length: tokens after which texts are cut.
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
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": context_length})
    (folder / "1_Pooling").mkdir(exist_ok=True)
    _write_json(folder / "1_Pooling" / "config.json", settings)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
