"""Small random masked-language models of transformers, as folders with a tokenizer."""

import torch
import transformers
from transformers import AutoModelForMaskedLM

VOCAB_SIZE = 30_522
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "pad_token_id": 0,
}
_SPECIAL = {"bos_token_id": 101, "eos_token_id": 102, "cls_token_id": 101, "sep_token_id": 102}
_BEHIND_PADDING = {
    **SHAPE,
    "max_position_embeddings": 514,
    "bos_token_id": 101,
    "eos_token_id": 102,
}

# Names of configurations that a version of transformers may lack, and their settings.
CONFIGURATIONS = {
    "bert": ("BertConfig", SHAPE),
    "roberta": ("RobertaConfig", _BEHIND_PADDING),
    "xlm-roberta": ("XLMRobertaConfig", _BEHIND_PADDING),
    "camembert": ("CamembertConfig", _BEHIND_PADDING),
    "distilbert": (
        "DistilBertConfig",
        {"vocab_size": VOCAB_SIZE, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    ),
    "deberta-v2": (
        "DebertaV2Config",
        {
            **SHAPE, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16,
            "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    "modernbert": (
        "ModernBertConfig",
        {**SHAPE, **_SPECIAL, "local_attention": 16, "global_attn_every_n_layers": 2},
    ),
    "nomic_bert": ("NomicBertConfig", {**SHAPE, "max_position_embeddings": 512}),
    "eurobert": (
        "EuroBertConfig",
        {
            **SHAPE, "num_key_value_heads": 2, "bos_token_id": 101, "eos_token_id": 102,
            "mask_token_id": 103,
        },
    ),
}  # fmt: skip
# Those whose layers hand what they are given on to their attention, and attend to whole documents.
PACKED = {"bert", "roberta", "xlm-roberta", "camembert", "distilbert", "nomic_bert", "eurobert"}
ARCHITECTURES = [name for name, (kind, _) in CONFIGURATIONS.items() if hasattr(transformers, kind)]


def build_network(architecture, **changes):
    """A random network of an architecture, in fp32."""
    kind, settings = CONFIGURATIONS[architecture]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**settings, **changes})
    return AutoModelForMaskedLM.from_config(config, dtype=torch.float32).eval()


def write_folder(folder, architecture, tokenizer, **changes):
    """Write such a network with a tokenizer, as a user may have it; returns the network."""
    network = build_network(architecture, **changes)
    network.save_pretrained(folder)
    tokenizer.save(folder, 512)
    return network
