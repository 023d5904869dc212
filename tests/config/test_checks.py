"""Every problem a configuration can have is found, named by its key, and comes with its fix."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert_train.config.checks import find_problems
from neobert_train.config.choices import ConstantConfig, MuonConfig, NorMuonConfig, WSDConfig
from neobert_train.config.command_schema import ExportConfig
from neobert_train.config.data_schema import DataConfig, MixtureSourceConfig, SourceKind
from neobert_train.config.derived import (
    compute_accumulation_steps,
    compute_num_lanes,
)
from neobert_train.config.divisors import find_divisors
from neobert_train.config.evaluate_schema import EvaluateConfig, GridConfig, Method
from neobert_train.config.model_schema import NeoBERTModelConfig
from neobert_train.config.schema import Precision, TrainConfig
from neobert_train.config.setting import Range, iter_settings
from neobert_train.modeling.configuration_neobert import NeoBERTConfig

NAN, INF = float("nan"), float("inf")


def change(config, **values):
    """Set dotted keys, written with two underscores for the dot."""
    for key, value in values.items():
        *sections, name = key.split("__")
        section = config
        for part in sections:
            section = getattr(section, part)
        assert hasattr(section, name)
        setattr(section, name, value)
    return config


def test_the_defaults_have_no_problem():
    assert find_problems(TrainConfig()) == []


@pytest.mark.parametrize(
    "values", [{"data__dataset": "org/name"}, {"data__subset": "en"}, {"data__data_files": ["a"]}]
)
def test_settings_of_a_source_that_is_not_read_are_refused(values):
    assert find_problems(change(TrainConfig(), **values)) == []
    config = change(TrainConfig(), data__source=SourceKind.embedded, **values)
    (problem,) = find_problems(config)
    key = next(iter(values)).replace("__", ".")
    assert problem.startswith(
        f"{key} is set but data.source=embedded: write data.source=huggingface"
    )


OUT_OF_RANGE = [
    ("batch__global_batch_tokens", 0),
    ("batch__micro_batch_tokens", -1),
    ("batch__context_length", 7),
    ("data__lookahead_documents", 129),
    ("data__lookahead_documents", 0),
    ("data__shuffle_window", 0),
    ("data__heldout_fraction", 1.0),
    ("data__heldout_fraction", -0.1),
    ("data__num_workers", -1),
    ("masking__rate", 0.0),
    ("masking__rate", 1.0),
    ("masking__rate", NAN),
    ("model__num_attention_heads", 0),
    ("model__norm_eps", 0.0),
    ("optimizer__lr", 0.0),
    ("optimizer__lr", NAN),
    ("optimizer__weight_decay", -0.1),
    ("optimizer__max_grad_norm", NAN),
    ("optimizer__betas", [0.9, 1.0]),
    ("optimizer__betas", [-0.1, 0.9]),
    ("scheduler__decay_fraction", 0.0),
    ("scheduler__decay_fraction", 1.1),
    ("scheduler__final_lr_ratio", 1.5),
    ("scheduler__warmup_steps", -1),
    ("trainer__max_steps", 0),
    ("trainer__log_every_steps", 0),
    ("trainer__evaluate_every_steps", -1),
    ("checkpoint__keep_last", 0),
    ("checkpoint__save_every_steps", 0),
    ("deepspeed__zero_stage", 4),
    ("deepspeed__zero_stage", -1),
    ("seed", -1),
]


@pytest.mark.parametrize(("key", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_named_with_its_bounds(key, value):
    (problem,) = find_problems(change(TrainConfig(), **{key: value}))
    assert problem.startswith(f"{key.replace('__', '.')}=")
    assert re.search(r"must be (at least|above|at most|below) -?[\d.]+", problem)


@pytest.mark.parametrize("key", ["optimizer__lr", "optimizer__weight_decay", "model__norm_eps"])
def test_infinity_is_out_of_range(key):
    assert find_problems(change(TrainConfig(), **{key: INF}))


BOUNDS = [
    ("masking__rate", 0.999),
    ("data__heldout_fraction", 0.5),
    ("scheduler__decay_fraction", 1.0),
    ("scheduler__final_lr_ratio", 0.0),
    ("scheduler__final_lr_ratio", 1.0),
    ("optimizer__betas", [0.0, 0.999]),
    ("optimizer__max_grad_norm", 0.0),
    ("data__num_workers", 0),
    ("data__lookahead_documents", 128),
    ("trainer__evaluate_every_steps", 0),
    ("deepspeed__zero_stage", 3),
]


@pytest.mark.parametrize(("key", "value"), BOUNDS)
def test_a_value_at_an_included_bound_is_fine(key, value):
    assert find_problems(change(TrainConfig(), **{key: value})) == []


@given(
    value=st.floats(allow_nan=False, allow_infinity=False),
    low=st.floats(-1e3, 1e3),
    high=st.floats(-1e3, 1e3),
)
def test_ranges_include_at_bounds_and_exclude_the_others(value, low, high):
    assert Range(at_least=low, at_most=high).admits(value) == (low <= value <= high)
    assert Range(above=low, below=high).admits(value) == (low < value < high)
    assert Range().admits(value)
    assert not Range(at_least=low).admits(NAN)
    assert not Range().admits(NAN)


# Changes, the key that the problem has to name, and the mend; applying the mend solves it.
CROSS_SECTION = [
    (
        {"batch__context_length": 2048, "batch__micro_batch_tokens": 1024},
        "batch.context_length=2048",
        "batch.micro_batch_tokens=2048",
        {"batch__micro_batch_tokens": 2048},
    ),
    (
        {"batch__global_batch_tokens": 100_000},
        "batch.global_batch_tokens=100000",
        "batch.global_batch_tokens=131072",
        {"batch__global_batch_tokens": 131_072},
    ),
    (
        {"batch__global_batch_tokens": 1024},
        "batch.global_batch_tokens=1024",
        "batch.global_batch_tokens=65536",
        {"batch__global_batch_tokens": 65_536},
    ),
    (
        {"model__num_attention_heads": 7},
        "model.num_attention_heads=7",
        "1, 2, 3, 4, 6, 8, 12",
        {"model__num_attention_heads": 12},
    ),
    (
        {"model__num_attention_heads": 256},
        "model.num_attention_heads",
        "choose model.num_attention_heads among 1, 2, 3",
        {"model__num_attention_heads": 128},
    ),
    (
        {"model__max_length": 512},
        "batch.context_length=1024",
        "model.max_length=1024",
        {"model__max_length": 1024},
    ),
    (
        {"data__source": SourceKind.files},
        "data.paths",
        "data.paths=[",
        {"data__paths": ["a.parquet"]},
    ),
    (
        {"data__paths": ["a.parquet"]},
        "data.paths",
        "data=files",
        {"data__source": SourceKind.files},
    ),
    (
        {"data__heldout_fraction": 0.0},
        "data.heldout_fraction=0",
        "evaluation.max_tokens=0",
        {"evaluation__max_tokens": 0},
    ),
    (
        {"evaluation__probes": ["party", "decades"]},
        "evaluation.probes: there is no probe decades",
        "did you mean decade?",
        {"evaluation__probes": ["party", "decade"]},
    ),
    (
        {"evaluation__probes": ["sentiment"]},
        "there is no probe sentiment",
        "choose among party, decade, next_paragraph",
        {"evaluation__probes": ["next_paragraph"], "evaluation__probe_every_steps": 5},
    ),
    (
        {"evaluation__probe_every_steps": 5},
        "evaluation.probe_every_steps=5 is set without a probe",
        "evaluation.probes=[party,decade,next_paragraph]",
        {"evaluation__probe_every_steps": 2000},
    ),
    (
        {"data__mixture": {"a": MixtureSourceConfig(weight=1.0, weight_from={9: 0.0})}},
        "has a weight above 0 from step 9 on",
        "raise one",
        {"data__mixture": {"a": MixtureSourceConfig(weight=0.0, weight_from={1: 0.5})}},
    ),
    (
        {"data__mixture": {"a b": MixtureSourceConfig()}},
        "the name 'a b'",
        "letters, digits, _ and - only",
        {"data__mixture": {"a_b": MixtureSourceConfig()}},
    ),
    (
        {"data__mixture": {"a": MixtureSourceConfig(source=SourceKind.files)}},
        "data.mixture.a.paths is empty",
        "data.mixture.a.paths=[my_texts/*.parquet]",
        {"data__mixture": {"a": MixtureSourceConfig(source=SourceKind.files, paths=["x"])}},
    ),
    (
        {"data__min_tokens": 9, "data__max_tokens": 8},
        "data.min_tokens=9 exceeds data.max_tokens=8",
        "lower the one or raise the other",
        {"data__max_tokens": 9},
    ),
    (
        {"masking__rate_steps": 9},
        "masking.rate_steps is set without masking.final_rate",
        "write the rate to arrive at",
        {"masking__final_rate": 0.1},
    ),
    ({"output_dir": " "}, "output_dir", "output_dir=runs/NAME", {"output_dir": "runs/a"}),
    (
        {"optimizer__betas": [0.9]},
        "optimizer.betas",
        "optimizer.betas=[0.9,0.95]",
        {"optimizer__betas": [0.9, 0.95]},
    ),
    (
        {"trainer__max_steps": 2100},
        "scheduler.warmup_steps=2000",
        "scheduler.warmup_steps=189",
        {"scheduler__warmup_steps": 189},
    ),
    (
        {
            "scheduler": WSDConfig(decay_start=1000),
            "trainer__max_steps": 500,
            "scheduler__warmup_steps": 9,
        },
        "scheduler.decay_start=1000",
        "scheduler.decay_start=400",
        {"scheduler__decay_start": 400},
    ),
    (
        {"optimizer": MuonConfig()},
        "optimizer=muon updates whole matrices, of which deepspeed=zero1 gives every process a slice",
        "write deepspeed=zero0",
        {"deepspeed__zero_stage": 0},
    ),
    (
        {"optimizer": NorMuonConfig(heads_per_matrix=5), "deepspeed__zero_stage": 0},
        "optimizer.heads_per_matrix=5",
        "choose it among 1, 2, 3, 4, 6, 12",
        {"optimizer__heads_per_matrix": 3},
    ),
]


@pytest.mark.parametrize(("changes", "key", "mend", "solution"), CROSS_SECTION)
def test_settings_that_contradict_each_other_are_told_with_a_mend_that_works(
    changes, key, mend, solution
):
    config = change(TrainConfig(), **changes)
    (problem,) = find_problems(config)
    assert key in problem
    assert mend in problem
    assert find_problems(change(config, **solution)) == []


@pytest.mark.parametrize("key", ["batch__micro_batch_tokens", "model__max_length"])
def test_a_context_may_fill_its_limit_and_no_more(key):
    config = change(TrainConfig(), **{key: 1024})
    assert find_problems(config) == []
    (problem,) = find_problems(change(config, batch__context_length=1025))
    assert key.replace("__", ".") in problem


@pytest.mark.parametrize(("width", "heads"), [(66, 4), (36, 5)])
def test_every_number_of_heads_offered_can_be_taken(width, heads):
    config = change(TrainConfig(), model__hidden_size=width, model__num_attention_heads=heads)
    (problem,) = find_problems(config)
    offered = [int(word) for word in re.findall(r"\d+", problem.split("among")[1])]
    for number in offered:
        assert find_problems(change(config, model__num_attention_heads=number)) == []


def test_all_contradictions_are_told_at_once():
    changes = {
        "batch__global_batch_tokens": 100_000,
        "batch__context_length": 8192,
        "data__source": SourceKind.files,
        "trainer__max_steps": 2100,
        "output_dir": "",
        "optimizer": MuonConfig(),
    }
    problems = find_problems(change(TrainConfig(), **changes))
    assert len(problems) == 6


def test_a_constant_rate_and_full_precision_lift_their_limits():
    config = change(TrainConfig(), trainer__max_steps=2000, scheduler=ConstantConfig())
    assert find_problems(config) == []
    config = change(config, trainer__precision=Precision.fp32, deepspeed__zero_stage=0)
    assert find_problems(config) == []


def test_a_short_trial_may_end_within_the_warmup():
    assert find_problems(change(TrainConfig(), trainer__max_steps=2000)) == []
    assert find_problems(change(TrainConfig(), trainer__max_steps=1)) == []


@settings(deadline=None, max_examples=50)
@given(lanes=st.integers(1, 48), world_size=st.integers(1, 60), micro=st.integers(8, 64))
def test_lanes_that_processes_cannot_share_are_told_with_the_sizes_that_can(
    lanes, world_size, micro
):
    config = TrainConfig(data=DataConfig())
    change(
        config,
        batch__context_length=8,
        batch__micro_batch_tokens=micro,
        batch__global_batch_tokens=micro * lanes,
    )
    problems = find_problems(config, world_size)
    good_sizes = [size for size in range(1, 61) if lanes % size == 0]
    if world_size in good_sizes:
        assert problems == []
        assert compute_num_lanes(config) == lanes
        assert compute_accumulation_steps(config, world_size) * world_size == lanes
    else:
        (problem,) = problems
        assert f"{world_size} processes" in problem
        assert f"one of {', '.join(map(str, good_sizes))} processes" in problem


def test_derived_values_follow_from_the_settings():
    config = TrainConfig()
    assert compute_num_lanes(config) == 32
    assert compute_accumulation_steps(config, 8) == 4
    assert config.scheduler.find_decay(config.trainer.max_steps).end == 900_000
    assert config.scheduler.find_decay(1).end == 1
    assert find_divisors(12) == [1, 2, 3, 4, 6, 12]
    assert find_divisors(1) == [1]


@pytest.mark.parametrize("nominal", [1, 12, 100, 128, 1024, 1536, 3072, 4097])
def test_feed_forward_width_of_the_plan_is_that_of_the_model(nominal):
    planned = NeoBERTModelConfig(intermediate_size=nominal).compute_feed_forward_width()
    assert planned == NeoBERTConfig(intermediate_size=nominal).feed_forward_width


def test_model_settings_default_to_the_published_model():
    published = NeoBERTConfig()
    for setting in iter_settings(NeoBERTModelConfig()):
        if setting.key not in (
            "kind",
            "attention",
            "feed_forward",
            "compile",
            "activation_checkpointing",
        ):
            assert getattr(published, setting.key) == setting.value


EVALUATE = [
    ({}, "run_dir=runs/NAME or model=FOLDER"),
    ({"run_dir": "a", "model": "b", "paths": ["c"]}, "not both"),
    ({"model": "b"}, "paths="),
    ({"model": "b", "paths": ["c"], "step": 3}, "step=.*run_dir"),
    ({"run_dir": "a", "tasks": ["glu"]}, "no task glu: did you mean glue"),
    ({"run_dir": "a", "tasks": []}, "masked_lm"),
    ({"run_dir": "a", "context_length": 99, "micro_batch_tokens": 98}, "micro_batch_tokens=99"),
    ({"run_dir": "a", "micro_batch_tokens": 7}, "micro_batch_tokens=7.*at least 8"),
    ({"run_dir": "a", "context_length": 0}, "context_length=0.*at least 8"),
    ({"run_dir": "a", "tasks": ["rte"]}, r"for rte write 'models=\[a\]' output=FOLDER"),
    ({"models": ["a"], "output": None, "paths": ["c"]}, "output=evaluations/NAME"),
    ({"models": ["a", "a"], "output": "o", "paths": ["c"]}, "names a model twice"),
    ({"models": ["a"], "output": "o"}, r"need texts: write paths="),
    ({"models": ["a"], "model": "b", "output": "o", "paths": ["c"]}, "does not go with model="),
    ({"models": ["a"], "output": "o", "tasks": ["sst"]}, "no task sst: did you mean sst2"),
    (
        {"models": ["a"], "output": "o", "tasks": ["classification/"], "data_dir": "d"},
        "no task classification/",
    ),
    ({"models": ["a"], "output": "o", "tasks": ["sts"]}, "write data_dir=FOLDER"),
    (
        {
            "models": ["a"],
            "output": "o",
            "tasks": ["token_classification"],
            "data_dir": "d",
            "grid": GridConfig(method=Method.probe),
        },
        "token_classification is not probed",
    ),
    (
        {"models": ["a"], "output": "o", "tasks": ["rte"], "grid": GridConfig(seeds=[])},
        r"grid.seeds=\[\]",
    ),
    (
        {
            "models": ["a"],
            "output": "o",
            "tasks": ["rte"],
            "grid": GridConfig(start_from_mnli=["rte"]),
        },
        "add mnli to tasks",
    ),
    (
        {
            "models": ["a"],
            "output": "o",
            "tasks": ["rte"],
            "grid": GridConfig(task_epochs={"rt": [1]}),
        },
        "no task rt: did you mean rte",
    ),
]


@pytest.mark.parametrize(("values", "message"), EVALUATE)
def test_evaluation_needs_something_to_measure_and_texts(values, message):
    (problem,) = find_problems(EvaluateConfig(**values))
    assert re.search(message, problem)


def test_sound_evaluation_and_export_have_no_problem():
    assert find_problems(EvaluateConfig(run_dir="a", step=0, context_length=64)) == []
    assert find_problems(EvaluateConfig(model="a", paths=["b"])) == []
    several = {"tasks": ["glue", "sts/mine"], "data_dir": "d", "output": "o"}
    assert find_problems(EvaluateConfig(models=["a", "b"], **several)) == []
    assert find_problems(ExportConfig(run_dir="a")) == []


def test_a_repository_and_a_branch_go_together():
    (problem,) = find_problems(ExportConfig(run_dir="a", revision="step-1"))
    assert "push_to_hub=org/name" in problem
    (problem,) = find_problems(ExportConfig(run_dir="a", push_to_hub="name"))
    assert "push_to_hub=name is no repository" in problem


def test_export_needs_a_run():
    (problem,) = find_problems(ExportConfig())
    assert "run_dir=runs/NAME" in problem


def test_a_run_of_no_steps_is_told_what_fits_instead(make_config):
    (problem,) = find_problems(make_config("trainer.max_steps=0"))
    for words in ("at least 1", "`doctor`", "`plan`", "`inspect_data`"):
        assert words in problem
