"""The exported folder: weights, configuration, remote code and tokenizer."""

import json
import shutil
from pathlib import Path

from neobert_train import modeling
from neobert_train.checkpoint import save_tensors
from neobert_train.modeling.modeling_neobert import NeoBERTLMHead
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

REMOTE_CODE = (
    "configuration_neobert.py",
    "modeling_neobert.py",
    "attention.py",
    "cpu_attention.py",
    "cross_entropy.py",
)
AUTO_MAP = {
    "AutoConfig": "configuration_neobert.NeoBERTConfig",
    "AutoModel": "modeling_neobert.NeoBERT",
    "AutoModelForMaskedLM": "modeling_neobert.NeoBERTLMHead",
    "AutoModelForSequenceClassification": "modeling_neobert.NeoBERTForSequenceClassification",
}


def write_model_folder(folder: Path, model: NeoBERTLMHead, tokenizer: TextTokenizer) -> None:
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
    config |= {"architectures": ["NeoBERTLMHead"], "auto_map": AUTO_MAP, "dtype": "float32"}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    source = Path(modeling.__file__).parent
    for name in REMOTE_CODE:
        shutil.copyfile(source / name, folder / name)
    tokenizer.save(folder, model.config.max_length)
