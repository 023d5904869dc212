"""An encoder with pooling and prompts, as sentence-transformers knows it: built, written and loaded again."""

import json
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule
from sentence_transformers.sentence_transformer.modules import Transformer
from transformers import PretrainedConfig

from neobert_train.config.embed_schema import EmbedConfig
from neobert_train.errors import InputError
from neobert_train.export.pooling import write_pooling
from neobert_train.files import make_readable
from neobert_train.modeling.modeling_neobert import NeoBERT
from neobert_train.models.exported import ExportedModel, register_neobert
from neobert_train.models.remote_code import AUTO_MAP, write_remote_code

USUAL_LENGTH = 512
# Tokenizers without a limit say a number beyond all texts.
_NO_LIMIT = 10**9


def build_model(exported: ExportedModel, config: EmbedConfig, label: str) -> SentenceTransformer:
    """Return an encoder with its pooling and prompts, in fp32.

    Args:
        exported: the encoder's folder.
        config: pooling, prompts and the length of texts.
        label: what names the encoder in messages.

    Raises:
        InputError: it cannot be loaded, has no tokenizer, or takes fewer tokens than `max_length`.
    """
    # Of a NeoBERT the classes of this package, whatever code lies in its folder.
    trusted = config.trust_remote_code and not exported.is_neobert
    transformer = _load_transformer(exported.folder, trusted, label)
    longest = find_longest(transformer)
    if config.max_length is not None and config.max_length > longest:
        raise InputError(
            f"max_length={config.max_length} exceeds what {label} takes: write max_length={longest}"
        )
    length = config.max_length or min(USUAL_LENGTH, _find_trained_length(transformer), longest)
    transformer.max_seq_length = length
    width = transformer.get_embedding_dimension()
    pooling = PoolingModule(width, config.pooling.value, include_prompt=config.pool_prompts)
    prompts = {"query": config.query_prompt, "document": config.document_prompt}
    return SentenceTransformer(
        modules=[transformer, pooling], prompts=prompts, device="cpu", trust_remote_code=trusted
    )


def _load_transformer(folder: Path, trust_remote_code: bool, label: str) -> Transformer:
    register_neobert()
    trust = {"trust_remote_code": trust_remote_code}
    try:
        transformer = Transformer(
            str(folder),
            model_kwargs={**trust, "use_safetensors": True, "dtype": "float32"},
            processor_kwargs=dict(trust),
            config_kwargs=dict(trust),
        )
    except Exception as error:  # whatever the libraries and the code of a model raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{label} cannot be loaded as an encoder of texts: {reason}") from error
    if transformer.tokenizer is None or transformer.tokenizer.pad_token is None:
        raise InputError(
            f"{label} has no tokenizer with a padding token, which embedding texts needs"
        )
    return transformer


def find_longest(transformer: Transformer) -> int:
    """Return how many tokens of a text a network can take.

    RoBERTa and its kin number positions from behind the padding id on, and have so many fewer.
    """
    config: PretrainedConfig = transformer.model.config
    longest = getattr(config, "max_position_embeddings", None) or _NO_LIMIT
    is_shifted = config.model_type in (
        "roberta",
        "xlm-roberta",
        "camembert",
        "xlm-roberta-xl",
        "mpnet",
    )
    return int(longest) - (int(config.pad_token_id or 0) + 1 if is_shifted else 0)


def _find_trained_length(transformer: Transformer) -> int:
    length = transformer.tokenizer.model_max_length
    return int(length) if 0 < length < _NO_LIMIT else _NO_LIMIT


def write_model(model: SentenceTransformer, folder: Path, config: EmbedConfig) -> None:
    """Write a folder that `SentenceTransformer(folder)` loads, from version 5 on.

    A NeoBERT comes with its code, for which it is loaded with `trust_remote_code=True`.

    Raises:
        OSError: it cannot be written.
    """
    model.save_pretrained(str(folder), create_model_card=False)
    transformer: Any = model[0]
    make_readable(folder)
    # Version 6 writes names of modules that version 5 does not have.
    width, length = transformer.get_embedding_dimension(), transformer.max_seq_length
    write_pooling(folder, width, config.pooling, length, config.pool_prompts)
    if isinstance(transformer.model, NeoBERT):
        file = folder / "config.json"
        values = json.loads(file.read_text(encoding="utf-8"))
        values["auto_map"] = AUTO_MAP
        file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        write_remote_code(folder)
