"""`evaluate` and `plan`: their numbers against independent ones."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from neobert_train.batch import Batch
from neobert_train.commands import evaluate
from neobert_train.config.choices import CHOICES
from neobert_train.config.evaluate_schema import EvaluateConfig
from neobert_train.config.model_schema import NeoBERTModelConfig
from neobert_train.config.schema import Precision
from neobert_train.data.corpus import open_corpus
from neobert_train.data.lane.lane import initial_states
from neobert_train.data.loader import StepLoader
from neobert_train.machine.peak import DEVICES, find_known_device
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.models.neobert import NeoBERTEncoder
from neobert_train.models.neobert_cost import NeoBERTCost
from neobert_train.models.size import ModelSize, compute_state_bytes, count_moments
from neobert_train.objectives.masked_lm import MaskedLM
from support.programs import run_command


def read_loss(output):
    return float(re.search(r"masked_lm loss +([\d.]+)", output)[1])


def test_a_run_and_its_export_evaluate_alike_and_like_the_run_did(finished_run, tmp_path):
    run_command("export", f"run_dir={finished_run}", f"output={tmp_path / 'out'}")
    texts = tmp_path / "texts.txt"
    texts.write_text("The state of the union is strong.\n\nMy fellow citizens, we have work to do.")
    given = [f"paths=[{texts}]", "context_length=64"]
    loss = read_loss(run_command("evaluate", f"run_dir={finished_run}", *given))
    assert loss == read_loss(run_command("evaluate", f"model={tmp_path / 'out'}", *given))
    assert 8 < loss < 11
    output = run_command("evaluate", f"run_dir={finished_run}", "micro_batch_tokens=512")
    metrics = (finished_run / "metrics.jsonl").read_text().splitlines()[-1]
    during = float(re.search(r'"eval/masked_lm_loss": ([\d.]+)', metrics)[1])
    assert read_loss(output) == pytest.approx(during, abs=0.05)


def test_a_run_is_evaluated_as_it_was_trained(tmp_path):
    """With its masking, seed and context; its export with the context."""
    run = tmp_path / "run"
    run_command(
        "+experiment=smoke", f"output_dir={run}", "trainer.max_steps=2", "trainer.evaluate_every_steps=2",
        "masking.rate=0.4", "masking.unit=word", "seed=3", "data.num_workers=0", "logging.report=false",
        "evaluation.max_tokens=2048", "data.heldout_fraction=0.02",
    )  # fmt: skip
    metrics = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    own = ("micro_batch_tokens=512", "max_tokens=2048")
    output = run_command("evaluate", f"run_dir={run}", *own)
    assert f"{metrics['eval/masked_lm_loss']:.4f} nats" in output
    assert f"{metrics['eval/masked_lm_accuracy']:.2%}" in output
    assert read_loss(output) != read_loss(run_command("evaluate", f"run_dir={run}", *own, "seed=4"))
    run_command("export", f"run_dir={run}", f"output={tmp_path / 'out'}")
    assert evaluate.load_subject(EvaluateConfig(model=str(tmp_path / "out"))).context_length == 128


class Planted:
    """Unpickling it leaves a file behind."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_model_that_is_a_pickle_is_not_read(finished_run, tmp_path):
    output, trace = tmp_path / "export", tmp_path / "unpickled"
    run_command("export", f"run_dir={finished_run}", f"output={output}")
    (output / "model.safetensors").unlink()
    torch.save({"weights": Planted(trace)}, output / "pytorch_model.bin")
    (tmp_path / "texts.txt").write_text("A speech.")
    told = run_command("evaluate", f"model={output}", f"paths=[{tmp_path / 'texts.txt'}]", code=2)
    assert "cannot be loaded as a NeoBERT" in told
    assert "model.safetensors" in told
    assert not trace.exists()


@pytest.mark.parametrize(
    ("wanted", "on_cpu", "on_gpu"),
    [(None, False, True), ("fp32", False, False), ("bf16", True, True)],
)
def test_evaluate_computes_in_bf16_on_gpus_unless_told_otherwise(
    monkeypatch, wanted, on_cpu, on_gpu
):
    config = EvaluateConfig(precision=None if wanted is None else Precision(wanted))
    monkeypatch.setattr(evaluate, "has_native_bf16", lambda device: True)
    assert evaluate.decide_bf16(config, torch.device("cpu")) is on_cpu
    assert evaluate.decide_bf16(config, torch.device("cuda")) is on_gpu
    monkeypatch.setattr(evaluate, "has_native_bf16", lambda device: False)
    assert evaluate.decide_bf16(config, torch.device("cuda")) is (wanted == "bf16")


def test_evaluate_says_what_is_missing(finished_run):
    output = run_command("evaluate", f"run_dir={finished_run}", "paths=[nothing.txt]", code=2)
    assert "nothing.txt: no such file" in output
    assert "give models=[...] to compare" in run_command("evaluate", code=2)


@pytest.mark.parametrize("lengths", [[128], [64, 32, 32], [16, 48, 64]])
def test_flops_equal_those_that_torch_counts(lengths):
    shape = NeoBERTModelConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96
    )
    size = NeoBERTCost(shape, vocab_size=200).size
    model = NeoBERTForMaskedLM(
        NeoBERTConfig(
            hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96,
            vocab_size=200,
        )
    )  # fmt: skip
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    tokens, masked = 128, 32
    ids = torch.randint(0, 200, (tokens,))
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    batch = Batch(
        ids, torch.zeros(tokens, dtype=torch.int32), starts, max(lengths), torch.arange(masked),
        ids[:masked], 0, {},
    )  # fmt: skip
    assert (batch.num_tokens, batch.num_targets) == (tokens, masked)
    assert batch.squared_lengths == sum(length**2 for length in lengths)
    # The plain matrix products of attention, which the counter knows on every device.
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        MaskedLM(NeoBERTEncoder(model)).compute(batch).loss_sum.backward()
    assert counter.get_total_flops() == size.compute_flops(tokens, batch.squared_lengths, masked)
    if len(lengths) == 1:
        per_token = size.compute_flops_per_token(tokens, target_share=masked / tokens)
        assert per_token * tokens == size.compute_flops(tokens, tokens**2, masked)


def test_the_operations_of_a_run_are_those_of_its_documents(finished_run, make_config, tokenizer):
    lines = (finished_run / "metrics.jsonl").read_text().splitlines()
    config = make_config()
    loader = StepLoader(config, open_corpus(config, tokenizer), initial_states(range(8)))
    size = NeoBERTCost(config.model, tokenizer.vocab_size).size
    for record in map(json.loads, lines):
        batches = loader.next_step()
        bounds = [itertools.pairwise(batch.cu_seqlens.tolist()) for batch in batches]
        squares = sum((end - start) ** 2 for pairs in bounds for start, end in pairs)
        flops = size.compute_flops(
            sum(b.num_tokens for b in batches), squares, sum(b.num_targets for b in batches)
        )
        rate = flops / record["train/step_seconds"]
        assert record["train/flops_per_second"] == pytest.approx(rate, rel=1e-9)
        assert 0 < record.get("train/mfu", 0.5) <= 1


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100-40"),
        ("A100-SXM4-40GB", "a100-40"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000-ada"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 3090 Ti", "rtx3090ti"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("Tesla V100-SXM2-32GB", None),
    ],
)
def test_devices_are_known_by_the_names_of_their_drivers(name, key):
    assert find_known_device(name) == (DEVICES[key] if key else None)


@pytest.mark.parametrize(
    ("stage", "expected"), [(1, 2 + 4 + 12 / 8), (2, 2 + 16 / 8), (3, 18 / 8), (0, 18)]
)
def test_bytes_of_training_state_per_parameter(stage, expected):
    size = ModelSize(800, 1000, 8, 1, 20)
    assert compute_state_bytes(size, 2000, stage, num_devices=8, bf16=True) == 1000 * expected


@pytest.mark.parametrize(
    ("kind", "expected"), [("adamw", 2 * 1000), ("muon", 2 * 224 + 776), ("normuon", 2 * 224 + 776)]
)
def test_numbers_that_an_optimiser_keeps(kind, expected):
    size = ModelSize(800, 1000, 8, 1, 20)  # 24 of the 800 in blocks are norms
    assert count_moments(CHOICES["optimizer"][kind](), size) == expected


def test_the_plan_of_an_optimiser_of_whole_matrices():
    settings = ("plan", "+experiment=pretrain_base", "optimizer=muon", "deepspeed=zero0")
    lines = [line.strip() for line in run_command(*settings).splitlines()]
    # 18 bytes per parameter with AdamW, and 14 for a hidden matrix.
    (line,) = [line for line in lines if line.startswith("ZeRO")]
    assert line.startswith("ZeRO 0: 3.6 GB state")


def test_the_plan_of_the_base_run():
    output = run_command("plan", "+experiment=pretrain_base", "device=h100", "mfu=0.5")
    assert "245,136,954 parameters" in output
    assert "2,097,152,000,000 tokens" in output
    flops = float(re.search(r"([\d.]+) GFLOP a token", output)[1]) * 1e9
    hours = float(re.search(r"time +([\d,.]+) hours", output)[1].replace(",", ""))
    assert hours == pytest.approx(2_097_152e6 * flops / (0.5 * 989.4e12 * 8) / 3600, rel=1e-3)
    assert "estimate that" not in output


def test_a_plan_says_that_its_own_share_of_the_peak_has_not_been_measured():
    output = run_command("plan", "+experiment=smoke")
    assert "mfu=0.34 is an estimate that has not been measured on a GPU; write mfu=SHARE" in output


def test_the_plan_of_probes():
    settings = ("plan", "+experiment=smoke", "evaluation.probe_every_steps=4")
    output = run_command(*settings, "evaluation.probes=[party]")
    # Before the first of ten steps, after 4 and 8, and at the end.
    found = re.search(r"probes +4 times ([\d,]+) tokens to encode: ([\d.]+) %", output)
    tokens, percents = int(found[1].replace(",", "")), float(found[2])
    flops = float(re.search(r"([\d.]+) GFLOP a token", output)[1]) * 1e9
    # A third of a step's operations a token without the projection to the vocabulary, in which most
    # of so small a model's operations are.
    most = 4 * tokens * flops / 3 / (40_960 * flops)
    assert 0.05 * most < percents / 100 < 0.5 * most
    assert 130_000 < tokens < 160_000
    assert "probes" not in run_command("plan", "+experiment=smoke")


def test_an_unknown_device_is_told_with_those_there_are():
    output = run_command("plan", "+experiment=smoke", "device=abacus", code=2)
    assert "h100, h200" in output


def test_a_plan_needs_no_torch():
    script = (
        "import sys; sys.argv = ['x', 'plan', '+experiment=pretrain_base'];"
        "from neobert_train.__main__ import main; main();"
        "print([name for name in ('torch', 'deepspeed', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.endswith("[]\n"), result.stdout + result.stderr


def test_evaluate_names_its_own_settings(finished_run, tmp_path):
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "of it and so on " * 40}) + "\n")
    given = ("evaluate", f"run_dir={finished_run}", f"paths=[{tmp_path / 'texts.jsonl'}]")
    output = run_command(*given, code=2)
    assert "write column=... with one of text" in output
    assert "data.column" not in output
    assert "masked_lm loss" in run_command(*given, "column=text")


def test_a_run_that_is_named_as_a_model_is_told_how_to_name_it(finished_run, tmp_path):
    output = run_command(
        "evaluate", f"model={finished_run}", f"paths=[{tmp_path}/texts.jsonl]", code=2
    )
    assert f"model={finished_run} is a training run: write run_dir={finished_run}" in output


def test_evaluate_says_what_to_do_about_a_record_that_cannot_be_read(finished_run, tmp_path):
    lines = [json.dumps({"text": "of it and so on " * 40})] * 30
    for name, line, advice in (
        ("broken", '{"text": }', "correct the file, or leave it out"),
        ("other", '{"text": 7}', "holds a number, not text: write column=... with another key"),
    ):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join([*lines, line]))
        output = run_command(
            "evaluate", f"run_dir={finished_run}", f"paths=[{path}]", "column=text", code=2
        )
        assert f"{path}, line 31: " in output
        assert advice in output
