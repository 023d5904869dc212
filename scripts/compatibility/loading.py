"""Uses of an exported model: loading, saving, changing its vocabulary."""

import copy
import pickle

import torch
import transformers
from safetensors.torch import load_file

from compatibility.given import HALF_TOLERANCE, HUB_NAME, Given, Use, compare


def read_config_and_tokenizer(given: Given) -> None:
    """`AutoConfig` and `AutoTokenizer`: ids, special tokens, `model_max_length`"""
    config = transformers.AutoConfig.from_pretrained(given.models / "model", trust_remote_code=True)
    tokenizer = given.load_tokenizer()
    assert (config.hidden_size, config.max_position_embeddings) == (64, 4096)
    assert tokenizer.model_max_length == 512
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id) == (config.mask_token_id, 0)
    found = tokenizer(given.texts, padding=True, return_tensors="pt")
    assert found["input_ids"].equal(given.expected["ids"])
    assert found["attention_mask"].equal(given.expected["mask"])
    assert tokenizer("word " * 999, truncation=True)["input_ids"][-1] == tokenizer.sep_token_id


def save_tokenizer(given: Given) -> None:
    """`tokenizer.save_pretrained` and load again: the same ids; offsets of words"""
    given.load_tokenizer().save_pretrained(given.scratch)
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.scratch)
    assert tokenizer(given.texts, padding=True)["input_ids"] == given.expected["ids"].tolist()
    (start, end) = tokenizer(given.texts[0], return_offsets_mapping=True)["offset_mapping"][1]
    assert given.texts[0][start:end].lower() == tokenizer.tokenize(given.texts[0])[0]


def load_encoder(given: Given) -> None:
    """`AutoModel`"""
    compare(given.load("")(**given.padded).last_hidden_state, given.expected["hidden"])


def load_text_encoding(given: Given) -> None:
    """`AutoModelForTextEncoding`"""
    hidden = given.load("TextEncoding")(**given.padded).last_hidden_state
    compare(hidden, given.expected["hidden"])


def load_masked_lm(given: Given) -> None:
    """`AutoModelForMaskedLM`"""
    compare(given.load()(**given.padded).logits, given.expected["logits"])


def load_pretraining(given: Given) -> None:
    """`AutoModelForPreTraining`"""
    compare(given.load("PreTraining")(**given.padded).logits, given.expected["logits"])


def load_sequence_classification(given: Given) -> None:
    """`AutoModelForSequenceClassification`: a fine-tuned one; `num_labels` gives a new head"""
    model = given.load("SequenceClassification", "sequence")
    compare(model(**given.padded).logits, given.expected["sequence"])
    fresh = given.load("SequenceClassification", num_labels=5)
    assert fresh(**given.padded).logits.shape == (3, 5)
    compare(fresh.model(**given.padded).last_hidden_state, given.expected["hidden"])


def load_token_classification(given: Given) -> None:
    """`AutoModelForTokenClassification`"""
    model = given.load("TokenClassification", "token")
    compare(model(**given.padded).logits, given.expected["token"])


def load_question_answering(given: Given) -> None:
    """`AutoModelForQuestionAnswering`"""
    output = given.load("QuestionAnswering", "question")(**given.padded)
    compare(output.start_logits, given.expected["question"])


def load_multiple_choice(given: Given) -> None:
    """`AutoModelForMultipleChoice`"""
    model = given.load("MultipleChoice", "choice")
    choices = {name: value[None] for name, value in given.padded.items()}
    compare(model(**choices).logits, given.expected["choice"])


def load_from_hub(given: Given) -> None:
    """From the Hub's cache with `HF_HUB_OFFLINE=1`, model and tokenizer"""
    compare(given.load(folder=HUB_NAME)(**given.padded).logits, given.expected["logits"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(HUB_NAME)
    assert tokenizer(given.texts, padding=True)["input_ids"] == given.expected["ids"].tolist()


def load_strictly(given: Given) -> None:
    """Every weight has its published name, and none is missing or left over"""
    weights = load_file(given.models / "model" / "model.safetensors")
    expected = {"model.encoder.weight", "model.layer_norm.weight", "decoder.weight", "decoder.bias"}
    parts = ("qkv", "wo", "ffn.w12", "ffn.w3", "attention_norm", "ffn_norm")
    expected |= {f"model.transformer_encoder.{n}.{part}.weight" for n in (0, 1) for part in parts}
    assert weights.keys() == expected
    given.load().load_state_dict(weights, strict=True)


def save_and_reload(given: Given) -> None:
    """`save_pretrained`, whole and in shards, and load again: the same bits, with the code"""
    model = given.load()
    logits = model(**given.padded).logits
    for name, settings in (("whole", {}), ("shards", {"max_shard_size": "5MB"})):
        model.save_pretrained(given.scratch / name, **settings)
        assert given.load(folder=given.scratch / name)(**given.padded).logits.equal(logits)
    assert len([*(given.scratch / "shards").glob("*.safetensors")]) > 1


def save_classifier(given: Given) -> None:
    """A classifier made of the encoder, saved and loaded again: the same bits, with the code"""
    model = given.load("SequenceClassification", num_labels=5)
    model.save_pretrained(given.scratch / "saved")
    again = given.load("SequenceClassification", given.scratch / "saved")
    assert again(**given.padded).logits.equal(model(**given.padded).logits)


def replace_head(given: Given) -> None:
    """A fine-tuned classifier with another number of labels, by `ignore_mismatched_sizes=True`"""
    settings = {"num_labels": 5, "ignore_mismatched_sizes": True}
    model = given.load("SequenceClassification", "sequence", **settings)
    assert model(**given.padded).logits.shape == (3, 5)
    dense = load_file(given.models / "sequence" / "model.safetensors")["dense.weight"]
    assert model.dense.weight.equal(dense)
    compare(model.model(**given.padded).last_hidden_state, given.expected["hidden"])


def load_in_half_precision(given: Given) -> None:
    """`torch_dtype` bf16, fp16 and `auto`, on a CPU"""
    assert given.load(torch_dtype="auto").dtype is torch.float32
    for dtype in (torch.bfloat16, torch.float16):
        model = given.load(torch_dtype=dtype)
        logits = model(**given.padded).logits
        assert logits.dtype is dtype
        compare(logits, given.expected["logits"], HALF_TOLERANCE)
        model.save_pretrained(given.scratch / "saved")
        assert given.load(folder=given.scratch / "saved", torch_dtype="auto").dtype is dtype


def choose_attention(given: Given) -> None:
    """`attn_implementation` `eager` and `sdpa`"""
    for name in ("eager", "sdpa"):
        model = given.load(attn_implementation=name)
        compare(model(**given.padded).logits, given.expected["logits"])


def copy_and_pickle(given: Given) -> None:
    """`copy.deepcopy` and `pickle` of a model"""
    model = given.load()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        compare(other(**given.padded).logits, given.expected["logits"])


def resize_vocabulary(given: Given) -> None:
    """`resize_token_embeddings` after `add_tokens`, saved and loaded again"""
    tokenizer, model = given.load_tokenizer(), given.load()
    tokenizer.add_tokens(["<new>"])
    model.resize_token_embeddings(len(tokenizer))
    compare(model(**given.padded).logits[..., :-1], given.expected["logits"])
    model.save_pretrained(given.scratch / "saved")
    again = given.load(folder=given.scratch / "saved")
    ids = tokenizer("a <new> word", return_tensors="pt")["input_ids"]
    assert again(ids).logits.equal(model(ids).logits)


def tie_weights(given: Given) -> None:
    """`config.tie_word_embeddings` and `tie_weights`, saved and loaded again"""
    model = given.load()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert model.decoder.weight is model.model.encoder.weight
    model.save_pretrained(given.scratch / "saved")
    again = given.load(folder=given.scratch / "saved")
    if again.decoder.weight is not again.model.encoder.weight:
        raise AssertionError(
            "loaded untied; transformers 5.3 does so with all models that bring code"
        )
    assert again(**given.padded).logits.equal(model(**given.padded).logits)


USES: list[Use] = [
    read_config_and_tokenizer,
    save_tokenizer,
    load_encoder,
    load_text_encoding,
    load_masked_lm,
    load_pretraining,
    load_sequence_classification,
    load_token_classification,
    load_question_answering,
    load_multiple_choice,
    load_from_hub,
    load_strictly,
    save_and_reload,
    save_classifier,
    replace_head,
    load_in_half_precision,
    choose_attention,
    copy_and_pickle,
    resize_vocabulary,
    tie_weights,
]
