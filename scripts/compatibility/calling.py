"""Uses of an exported model: the ways to call it."""

import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import transformers
from torch import Tensor

from compatibility.given import HALF_TOLERANCE, TOLERANCE, Given, NotOfferedError, Use, compare


def pad_left(given: Given) -> None:
    """Padding on the left gives the numbers of padding on the right, in a classifier too"""
    tokenizer = given.load_tokenizer()
    tokenizer.padding_side = "left"
    inputs = tokenizer(given.texts, padding=True, return_tensors="pt")
    logits = given.load()(**inputs).logits[inputs["attention_mask"].bool()]
    compare(logits, given.expected["logits"][given.expected["mask"].bool()])
    model = given.load("SequenceClassification", "sequence")
    compare(model(**inputs).logits, given.expected["sequence"])


def give_embeddings(given: Given) -> None:
    """`inputs_embeds` in place of `input_ids`"""
    model = given.load()
    embeds = model.get_input_embeddings()(given.expected["ids"])
    logits = model(inputs_embeds=embeds, attention_mask=given.expected["mask"]).logits
    compare(logits, given.expected["logits"])


def return_everything(given: Given) -> None:
    """`output_hidden_states`, `output_attentions`, `return_dict=False`"""
    model = given.load("")
    output = model(**given.padded, output_hidden_states=True, output_attentions=True)
    assert (len(output.hidden_states), len(output.attentions)) == (3, 2)
    compare(output.hidden_states[-1], given.expected["hidden"])
    sums = output.attentions[0].sum(-1)[:, 0]
    compare(sums, given.expected["mask"].float())
    (hidden,) = model(**given.padded, return_dict=False)
    compare(hidden, given.expected["hidden"])


def mask_pairs(given: Given) -> None:
    """A mask for pairs of tokens `[B, 1, S, S]`, boolean and added"""
    model, tokens = given.load(), given.expected["mask"].bool()
    allowed = tokens[:, None, None] & tokens[:, None, :, None]
    added = (~allowed).float() * torch.finfo(torch.float32).min
    for mask in (allowed, added):
        logits = model(given.expected["ids"], mask).logits
        compare(logits[tokens], given.expected["logits"][tokens])


def give_labels(given: Given) -> None:
    """`labels`: the loss, and its gradient"""
    model = given.load().train()
    loss = model(**given.padded, labels=given.expected["labels"]).loss
    loss.backward()
    compare(loss, given.expected["loss"])
    gradient = model.model.transformer_encoder[0].qkv.weight.grad
    compare(gradient, given.expected["gradient"], 10 * TOLERANCE)


def flatten(given: Given, **settings: Any) -> None:
    """Compare documents that transformers' collator joins with those of a padded batch."""
    tokens = given.expected["mask"].bool()
    rows = zip(given.expected["ids"], tokens, strict=True)
    collator = transformers.DataCollatorWithFlattening(**settings)
    batch = collator([{"input_ids": ids[kept].tolist()} for ids, kept in rows])
    batch.pop("labels", None)
    compare(given.load()(**batch).logits[0], given.expected["logits"][tokens])


def join_by_positions(given: Given) -> None:
    """`DataCollatorWithFlattening`: documents joined in one row, kept apart by `position_ids`"""
    flatten(given)


def join_by_bounds(given: Given) -> None:
    """The same with `return_flash_attn_kwargs=True`: by `cu_seq_lens_q`, without FlashAttention"""
    known = inspect.signature(transformers.DataCollatorWithFlattening.__init__).parameters
    if "return_flash_attn_kwargs" not in known:
        raise NotOfferedError("the collator has no such setting")
    flatten(given, return_flash_attn_kwargs=True)


def pass_odd_batches(given: Given) -> None:
    """No sequences, no tokens, a row of padding alone, 2,000 tokens"""
    model, ids = given.load(), given.expected["ids"]
    assert model(ids[:0]).logits.shape == (0, ids.shape[1], 30522)
    assert model(ids[:, :0]).logits.shape == (3, 0, 30522)
    mask = given.expected["mask"].clone()
    mask[1] = 0
    assert model(ids, mask).logits.isfinite().all()
    long = torch.randint(1000, 9000, (1, 2000))
    assert model.model(long).last_hidden_state.isfinite().all()


def take_token_types(given: Given) -> None:
    """`token_type_ids` are taken and change nothing"""
    types = torch.ones_like(given.expected["ids"])
    compare(given.load()(**given.padded, token_type_ids=types).logits, given.expected["logits"])


def refuse_unknown_keywords(given: Given) -> None:
    """A keyword that nothing takes is refused"""
    try:
        given.load()(**given.padded, attention_msk=None)
    except TypeError:
        return
    raise AssertionError("it is taken")


def call_from_threads(given: Given) -> None:
    """Four threads get the numbers of one, bit for bit"""
    model = given.load("")
    masks = [torch.ones(4, length, dtype=torch.long) for length in range(1, 60)]
    for mask in masks:
        mask[0, len(mask[0]) // 2 + 1 :] = 0
    batches = [(torch.randint(1000, 9000, mask.shape), mask) for mask in masks]

    def embed(batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.no_grad():
            return model(*batch).last_hidden_state

    expected = [embed(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(embed, batches)]
    assert all(one.equal(other) for one, other in zip(found, expected, strict=True))


def convert_to_half(given: Given) -> None:
    """`model.half()` and `torch.autocast` on a CPU"""
    logits = given.load().half()(**given.padded).logits
    compare(logits, given.expected["logits"], HALF_TOLERANCE)
    with torch.autocast("cpu", torch.bfloat16):
        logits = given.load()(**given.padded).logits
    compare(logits, given.expected["logits"], HALF_TOLERANCE)


def differentiate_twice(given: Given) -> None:
    """Second derivatives, with `attn_implementation="eager"`"""
    model = given.load("", attn_implementation="eager").double().requires_grad_(False)
    embeds = torch.randn(1, 5, 64, dtype=torch.float64)
    direction, step = torch.randn_like(embeds), 1e-3

    def compute(x: Tensor) -> Tensor:
        return model(inputs_embeds=x).last_hidden_state[:, 1].square().sum()

    second = torch.autograd.functional.hvp(compute, embeds, direction)[1]
    moved = [
        torch.autograd.functional.jacobian(compute, embeds + sign * step * direction)
        for sign in (1, -1)
    ]
    compare(second, (moved[0] - moved[1]) / (2 * step), 1e-3)


def checkpoint_activations(given: Given) -> None:
    """`gradient_checkpointing_enable`, both kinds: the same gradients"""
    for reentrant in (False, True):
        model = given.load().train()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        model(**given.padded, labels=given.expected["labels"]).loss.backward()
        gradient = model.model.transformer_encoder[0].qkv.weight.grad
        compare(gradient, given.expected["gradient"], 10 * TOLERANCE)


USES: list[Use] = [
    pad_left,
    give_embeddings,
    return_everything,
    mask_pairs,
    give_labels,
    join_by_positions,
    join_by_bounds,
    pass_odd_batches,
    take_token_types,
    refuse_unknown_keywords,
    call_from_threads,
    convert_to_half,
    differentiate_twice,
    checkpoint_activations,
]
