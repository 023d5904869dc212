"""Uses of an exported model: fine-tuning with transformers, accelerate and PEFT."""

from typing import Any

import torch
import transformers
from torch import Tensor

from compatibility.given import HALF_TOLERANCE, TOLERANCE, Given, Use, compare, want


def build_trainer(given: Given, model: Any, rows: list[Any], **settings: Any) -> Any:
    """Return a `Trainer` that writes to the scratch folder."""
    want("accelerate", "Accelerator")
    collator = settings.pop("collator", transformers.default_data_collator)
    arguments = transformers.TrainingArguments(
        str(given.scratch / "trainer"), max_steps=4, save_steps=2, logging_steps=1, report_to=[],
        per_device_train_batch_size=2, learning_rate=1e-2, disable_tqdm=True, **settings,
    )  # fmt: skip
    return transformers.Trainer(model, arguments, data_collator=collator, train_dataset=rows)


def make_rows(given: Given, labels: list[Any]) -> list[dict[str, Any]]:
    """Return the texts as examples with labels, 12 of them."""
    rows = zip(given.expected["ids"], given.expected["mask"], labels, strict=True)
    names = ("input_ids", "attention_mask", "labels")
    return [dict(zip(names, row, strict=True)) for row in rows] * 4


def check_saved(given: Given, trainer: Any, head: str, tolerance: float = TOLERANCE) -> None:
    """Refuse a training after which the loss is not lower, or the model cannot be loaded again."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0], losses
    trainer.save_model(given.scratch / "saved")
    again = given.load(head, given.scratch / "saved")
    logits = trainer.model.eval()(**given.padded).logits
    compare(again(**given.padded).logits, logits, tolerance)


def train_masked_lm(given: Given) -> None:
    """`Trainer` and `DataCollatorForLanguageModeling`: 4 steps, saved and loaded again"""
    tokenizer = given.load_tokenizer()
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5)
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in given.texts * 4]
    trainer = build_trainer(given, given.load(), rows, collator=collator)
    trainer.train()
    check_saved(given, trainer, "MaskedLM")


def train_classifier(given: Given) -> None:
    """`Trainer` for classification, continued from its checkpoint; `predict`"""
    rows = make_rows(given, [0, 2, 1])
    states = []
    for resumed in (False, True):
        torch.manual_seed(0)
        model = given.load("SequenceClassification", num_labels=3, classifier_dropout=0.0)
        trainer = build_trainer(given, model, rows, seed=0)
        checkpoint = str(given.scratch / "trainer" / "checkpoint-2") if resumed else None
        trainer.train(resume_from_checkpoint=checkpoint)
        states.append(model.eval()(**given.padded).logits)
    compare(states[1], states[0], 1e-4)
    predicted = torch.tensor(trainer.predict(rows[:3]).predictions)
    compare(predicted, states[1], 1e-4)
    check_saved(given, trainer, "SequenceClassification")


def train_with_options(given: Given) -> None:
    """`Trainer` with gradient accumulation, gradient checkpointing and bf16, for tokens"""
    model = given.load("TokenClassification", num_labels=3)
    rows = make_rows(given, [*(given.expected["ids"] % 3)])
    trainer = build_trainer(
        given,
        model,
        rows,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        bf16=True,
        use_cpu=True,
    )
    trainer.train()
    check_saved(given, trainer, "TokenClassification", HALF_TOLERANCE)


def accumulate(given: Given) -> None:
    """`Trainer`: two accumulated batches of unequal length have the loss of one batch"""
    losses = []
    for size, steps in ((4, 1), (2, 2)):
        labels = [*given.expected["labels"]]
        trainer = build_trainer(
            given, given.load(), make_rows(given, labels), gradient_accumulation_steps=steps,
        )  # fmt: skip
        trainer.args.per_device_train_batch_size = trainer._train_batch_size = size
        trainer.train()
        losses.append(torch.tensor(trainer.state.log_history[0]["loss"]))
    compare(losses[1], losses[0], 1e-3)


def run_accelerator(given: Given) -> None:
    """`Accelerator.prepare` and `accelerator.backward`"""
    accelerator = want("accelerate", "Accelerator")(cpu=True)
    model = given.load().train()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.backward(model(**given.padded, labels=given.expected["labels"]).loss)
    optimizer.step()
    assert model(**given.padded, labels=given.expected["labels"]).loss < given.expected["loss"]


def map_devices(given: Given) -> None:
    """`device_map="cpu"`, and a block on disk"""
    want("accelerate", "cpu_offload")
    compare(given.load(device_map="cpu")(**given.padded).logits, given.expected["logits"])
    places = {"model.encoder": "cpu", "model.layer_norm": "cpu", "decoder": "cpu"}
    places |= {f"model.transformer_encoder.{n}": place for n, place in enumerate(("cpu", "disk"))}
    model = given.load(device_map=places, offload_folder=str(given.scratch))
    with torch.no_grad():
        compare(model(**given.padded).logits, given.expected["logits"])


def load_empty(given: Given) -> None:
    """`init_empty_weights` and `load_checkpoint_and_dispatch`"""
    folder = given.models / "model"
    with want("accelerate", "init_empty_weights")():
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
        auto = transformers.AutoModelForMaskedLM
        model = auto.from_config(config, trust_remote_code=True).eval()
    dispatch = want("accelerate", "load_checkpoint_and_dispatch")
    model = dispatch(model, str(folder / "model.safetensors"), device_map={"": "cpu"})
    compare(model(**given.padded).logits, given.expected["logits"])


def adapt(model: Any, given: Given, labels: Tensor, **settings: Any) -> Any:
    """Train LoRA for three steps."""
    adapted = want("peft", "get_peft_model")(model, want("peft", "LoraConfig")(**settings))
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    for _ in range(3):
        adapted(**given.padded, labels=labels).loss.backward()
        optimizer.step()
    return adapted.eval()


def adapt_classifier(given: Given, target: Any = ("qkv", "wo")) -> None:
    """PEFT: LoRA of `qkv` and `wo` of a classifier; saved, and loaded onto another new head"""
    model = given.load("SequenceClassification", num_labels=3)
    target = target if isinstance(target, str) else [*target]
    labels = torch.tensor([0, 2, 1])
    adapted = adapt(model, given, labels, task_type="SEQ_CLS", target_modules=target)
    adapted.save_pretrained(given.scratch / "adapter")
    fresh = given.load("SequenceClassification", num_labels=3)
    assert not fresh(**given.padded).logits.equal(adapted(**given.padded).logits)
    again = want("peft", "PeftModel").from_pretrained(fresh, given.scratch / "adapter").eval()
    compare(again(**given.padded).logits, adapted(**given.padded).logits)


def adapt_all_linear(given: Given) -> None:
    """The same with `target_modules="all-linear"`"""
    try:
        adapt_classifier(given, "all-linear")
    except (AssertionError, KeyError) as error:
        raise RuntimeError(f"{error}; PEFT 0.14 and 0.15 fail so with RoBERTa as well") from error


def adapt_masked_lm(given: Given) -> None:
    """PEFT: LoRA of the masked-language model, merged and saved as a model"""
    labels = given.expected["labels"]
    adapted = adapt(
        given.load(), given, labels, target_modules=["qkv", "w12"], modules_to_save=["decoder"]
    )
    logits = adapted(**given.padded).logits
    adapted.merge_and_unload().save_pretrained(given.scratch / "merged")
    compare(given.load(folder=given.scratch / "merged")(**given.padded).logits, logits, 1e-4)


USES: list[Use] = [
    train_masked_lm,
    train_classifier,
    train_with_options,
    accumulate,
    run_accelerator,
    map_devices,
    load_empty,
    adapt_classifier,
    adapt_all_linear,
    adapt_masked_lm,
]
