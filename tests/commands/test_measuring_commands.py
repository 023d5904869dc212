"""`evaluate` and `plan`: their numbers against independent ones."""

import re
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from commands.conftest import run_command
from neobert_train.accounting import compute_model_size, compute_state_bytes
from neobert_train.config.schema import ModelConfig
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.modeling_neobert import NeoBERTLMHead


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


def test_evaluate_says_what_is_missing(finished_run):
    output = run_command("evaluate", f"run_dir={finished_run}", "paths=[nothing.txt]", code=2)
    assert "nothing.txt: no such file" in output
    assert "give either run_dir" in run_command("evaluate", code=2)


def test_flops_per_token_equal_those_that_torch_counts():
    shape = ModelConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96
    )
    size = compute_model_size(shape, vocab_size=200)
    model = NeoBERTLMHead(
        NeoBERTConfig(
            hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96,
            vocab_size=200,
        )
    )  # fmt: skip
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    tokens, masked = 128, 32
    ids = torch.randint(0, 200, (tokens,))
    # The plain matrix products of attention, which the counter knows on every device.
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        output = model(
            ids, cu_seqlens=torch.tensor([0, tokens]), masked_positions=torch.arange(masked),
            labels=ids[:masked],
        )  # fmt: skip
        output.loss.backward()
    expected = size.flops_per_token(attended=tokens, masked_share=masked / tokens) * tokens
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("stage", "expected"), [(1, 2 + 4 + 12 / 8), (2, 2 + 16 / 8), (3, 18 / 8), (0, 18)]
)
def test_bytes_of_training_state_per_parameter(stage, expected):
    assert compute_state_bytes(1000, stage, num_devices=8, bf16=True) == 1000 * expected


def test_the_plan_of_the_base_run():
    output = run_command("plan", "+experiment=pretrain_base", "device=h100", "mfu=0.5")
    assert "245,136,954 parameters" in output
    assert "2,097,152,000,000 tokens" in output
    flops = float(re.search(r"([\d.]+) GFLOP a token", output)[1]) * 1e9
    hours = float(re.search(r"time +([\d,.]+) hours", output)[1].replace(",", ""))
    assert hours == pytest.approx(2_097_152e6 * flops / (0.5 * 989.4e12 * 8) / 3600, rel=1e-3)


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
