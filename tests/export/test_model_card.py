"""The model card shows names and values as they are, whatever characters they hold."""

import ast
import re
from dataclasses import replace

import pytest
import yaml
from tokenizers import Tokenizer, models

from neobert_train.config.data_schema import SourceKind
from neobert_train.config.model_schema import HuggingFaceModelConfig
from neobert_train.config.schema import TrainConfig
from neobert_train.export.model_card import CardNames, render_model_card
from neobert_train.models.cost import build_cost
from neobert_train.models.size import ModelSize
from neobert_train.run.checkpoint import TrainingState
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

NASTY = "runs/<script>alert('x')</script>|`a` ``` [b](javascript:c) *d* \"e\"\n# f & g"


def make_tokenizer(mask="[MASK]"):
    specials = ["<pad>", "<s>", "</s>", mask]
    vocabulary = {token: index for index, token in enumerate(specials)}
    return TextTokenizer(Tokenizer(models.WordLevel(vocabulary)), "words", {"mask": mask})


def render(name="org/name", dataset="org/data", mask="[MASK]", **metrics):
    config, tokenizer = TrainConfig(), make_tokenizer(mask)
    config.data.source, config.data.dataset = SourceKind.huggingface, dataset
    names = CardNames(name, name)
    state = replace(TrainingState.begin({}), step=3, tokens=10, num_targets=2)
    size = build_cost(config.model, tokenizer.vocab_size).size
    return render_model_card(names, config, state, tokenizer, size, metrics)


def find_code(card):
    """The code of the card, and the card without it."""
    block = re.compile(r"^(`{3,})python\n(.*?)\n\1$", re.DOTALL | re.MULTILINE)
    return "\n".join(code for _, code in block.findall(card)), block.sub("", card)


def test_a_path_is_shown_and_loads_what_it_names():
    code, rest = find_code(render(NASTY))
    texts = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert texts.count(NASTY) == 6
    assert "<script" not in rest
    assert "\n# f" not in rest
    title = next(line for line in rest.splitlines() if line.startswith("# "))
    assert title == (
        "# runs/&lt;script&gt;alert('x')&lt;/script&gt;\\|\\`a\\` \\`\\`\\` \\[b\\](javascript:c) "
        '\\*d\\* "e" # f &amp; g'
    )


@pytest.mark.parametrize("mask", ["<mask>", "<|mask|>", '"```', "▁é"])
def test_the_example_has_the_mask_of_the_tokenizer(mask):
    code, _ = find_code(render(mask=mask))
    (call,) = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)
               and ast.unparse(node.func) == "fill")  # fmt: skip
    assert ast.literal_eval(call.args[0]) == f"The state of the union is {mask}."


@pytest.mark.parametrize("dataset", [NASTY, "a/b]\ntags: [x", "../x", "https://host/x"])
def test_a_dataset_cannot_write_front_matter_or_rows(dataset):
    card = render(dataset=dataset)
    front = yaml.safe_load(card.split("---\n")[1])
    assert front == {
        "library_name": "transformers", "pipeline_tag": "fill-mask", "tags": ["neobert", "masked-lm"],
    }  # fmt: skip
    rows = [line for line in card.splitlines() if line.startswith("| data |")]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 3
    assert "<script" not in rows[0]


def test_a_dataset_of_the_hub_is_linked():
    assert yaml.safe_load(render().split("---\n")[1])["datasets"] == ["org/data"]


def test_a_measurement_that_was_not_finite_is_shown_as_such():
    card = render(**{"eval/masked_lm_loss": None, "train/loss": 2.0})
    assert "| held-out loss (nats per masked token) | not a finite number |" in card
    assert "| training loss (nats per masked token) | 2.0000 |" in card
    assert "Nothing was measured" in render()


def test_a_network_from_elsewhere_is_named_and_its_code_only_shown_where_it_has_some(
    monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)

    def write(**settings):
        config, tokenizer = TrainConfig(model=HuggingFaceModelConfig(**settings)), make_tokenizer()
        size = ModelSize(1, 2, 3, 4, 5)
        names, state = CardNames("mine", "mine"), TrainingState.begin({})
        return render_model_card(names, config, state, tokenizer, size, {})

    own = write(name="org/base@main")
    assert "base_model: org/base\n" in own
    assert "architecture and initial weights of [org/base](https://huggingface.co/org/base)," in own
    assert "trust_remote_code" not in own
    (tmp_path / "networks" / "toy").mkdir(parents=True)
    toy = write(name="networks/toy", from_scratch=True, trust_remote_code=True)
    assert "architecture of toy," in toy
    assert "base_model" not in toy
    assert "huggingface.co" not in toy
    assert "trust_remote_code=True" in toy
    assert "AutoModelForSequenceClassification" not in toy
