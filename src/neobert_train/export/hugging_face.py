"""The exported folder: weights, configuration, remote code and tokenizer."""

import json
from pathlib import Path

from neobert_train.checkpoint import save_tensors
from neobert_train.export.remote_code import AUTO_MAP, write_remote_code
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.tokenizers.text_tokenizer import TextTokenizer


def write_model_folder(folder: Path, model: NeoBERTForMaskedLM, tokenizer: TextTokenizer) -> None:
    """Write what `AutoModel...from_pretrained(folder, trust_remote_code=True)` needs.

    Args:
        folder: is made where it is missing.
        model: with fp32 weights, which are written under the published names.
        tokenizer: written for `AutoTokenizer`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(weights, folder / "model.safetensors", {"format": "pt"})
    config = model.config.to_diff_dict()
    config |= {"architectures": ["NeoBERTForMaskedLM"], "auto_map": AUTO_MAP, "dtype": "float32"}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    write_remote_code(folder)
    tokenizer.save(folder, model.config.max_length)
