"""`doctor`: what it finds on this machine, and on machines with one thing wrong."""

import errno
import re
import shutil
import tempfile
from types import SimpleNamespace

import pytest
import torch

from neobert_train.commands import doctor
from neobert_train.config.command_schema import DoctorConfig
from neobert_train.machine import devices
from neobert_train.world import World
from support.configs import compose
from support.programs import run_anew, run_command

FALSE_FILES = {
    "none.jsonl": (None, "no such file"),
    "empty.jsonl": (b"", "is empty"),
    "key.jsonl": (b'{"body": "x"}\n', "data.column=... with one of body"),
    "fake.parquet": (b"PAR1 no parquet", "cannot be read as parquet"),
}


@pytest.fixture
def examine(tmp_path, monkeypatch):
    """Examine `+experiment=smoke` with overrides; without the measuring, which has a test.

    Few documents are read, and all of them in the test of the command.
    """
    monkeypatch.setattr(doctor, "_SAMPLE_DOCUMENTS", 3)
    monkeypatch.setattr(doctor, "find_peak_flops", lambda _, dtype: 1e10 * dtype.itemsize)

    def run(*overrides: str) -> doctor.Findings:
        base = ["+experiment=smoke", f"output_dir={tmp_path / 'run'}"]
        config = compose("doctor", *base, *overrides)
        assert isinstance(config, DoctorConfig)
        return doctor.examine(config, World())

    return run


def test_it_tells_what_the_machine_has_and_what_a_run_would_use(tmp_path):
    output = run_anew(
        "doctor", "+experiment=smoke", f"output_dir={tmp_path / 'run'}", CUDA_VISIBLE_DEVICES=""
    )
    for words in (
        f"torch {torch.__version__}",
        "deepspeed 0",
        "launchers",
        "GFLOP/s, measured",
        "trainer.precision=fp32 takes fp32",
        "model.attention=auto takes sdpa in fp32",
        "flash_attn: it runs on CUDA devices only, and this is cpu",
        "sdpa: can run",
        "optimizer=adamw can take a step on cpu",
        "neobert_train +experiment=smoke",
        "8 lanes: 8 micro-batches of 512 tokens",
        "a run begins",
        "bert-base-uncased, 30,522 entries",
        "GB free; a checkpoint of 4,004,218 parameters",
        "corpus: 1 files or shards, 0.7 MB; 74 documents were read",
    ):
        assert words in output
    assert output.endswith("no problems: a run can start\n")
    assert "WARNING" not in output
    assert list(tmp_path.iterdir()) == []


def test_all_problems_come_last_with_their_mends_and_code_2(tmp_path):
    (tmp_path / "file").write_text("mine")
    output = run_command(
        "doctor", "+experiment=smoke", f"output_dir={tmp_path / 'file' / 'run'}",
        "batch.context_length=1024", "model.attention=xformers", "tokenizer.path=nobody/nothing",
        code=2, CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1",
    )  # fmt: skip
    report, problems = output.split("neobert_train: ")
    assert "launchers" in report
    assert problems.startswith("5 problems were found")
    for mend in (
        "batch.micro_batch_tokens=1024",
        "model.max_length=1024",
        "write model.attention=auto",
        f"{tmp_path / 'file'} cannot be written to (Not a directory): write output_dir=...",
        "tokenizer.path=bert-base-uncased",
    ):
        assert mend in problems
    assert "Traceback" not in output


def test_settings_out_of_range_are_told_at_once():
    assert "masking.rate=2.0 is out of range" in run_command("doctor", "masking.rate=2", code=2)


@pytest.mark.parametrize("name", FALSE_FILES)
def test_data_that_cannot_be_read(examine, tmp_path, name):
    content, words = FALSE_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (problem,) = examine("data=files", f"data.paths=[{tmp_path / name}]").problems
    assert words in problem


def test_a_run_directory_that_holds_another_run(examine, finished_run):
    shown = examine(f"output_dir={finished_run}")
    assert shown.problems == []
    assert any("continues from step 3" in line for line in shown.lines)
    (problem,) = examine(f"output_dir={finished_run}", "seed=7").problems
    assert "holds another run; write output_dir=..." in problem
    (problem,) = examine("resume=must").problems
    assert "resume=must, but" in problem


def test_a_disk_that_is_full_or_not_writable(examine, monkeypatch):
    # 4,004,218 parameters of 12 bytes are 48 MB a checkpoint.
    for free, problems, notes in ((40e6, 1, 0), (100e6, 0, 1), (1e9, 0, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        found = examine()
        assert (len(found.problems), len(found.notes)) == (problems, notes)
        assert all("has no room for" in text for text in [*found.problems, *found.notes])

    def refuse(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    (problem,) = examine().problems
    assert "cannot be written to (Read-only file system): write output_dir=..." in problem


def test_without_a_compiler_only_a_note_says_that_nothing_is_compiled(examine, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    assert examine().notes == []
    found = examine("model.compile=true")
    assert found.problems == []
    assert "torch.compile needs a C++ compiler" in found.notes[0]


def test_a_cpu_that_is_slow_in_bf16(examine, monkeypatch):
    monkeypatch.setattr(doctor, "has_native_bf16", lambda device: True)
    assert examine("trainer.precision=bf16").notes == []  # only busy while it was measured
    monkeypatch.setattr(doctor, "has_native_bf16", lambda device: False)
    found = examine("trainer.precision=bf16")
    assert "peak        bf16 20.0 GFLOP/s, fp32 40.0 GFLOP/s, measured" in found.lines
    (note,) = found.notes
    assert re.search("this CPU has no bf16 .* times as fast .*: write trainer.precision=fp32", note)
    assert examine("trainer.precision=fp32").notes == []


@pytest.mark.parametrize("is_native", [True, False])
def test_the_precision_that_auto_takes(examine, monkeypatch, is_native):
    monkeypatch.setattr(devices, "has_native_bf16", lambda device: is_native)
    precision = "bf16" if is_native else "fp32"
    lines = examine("trainer.precision=auto").lines
    assert f"precision   trainer.precision=auto takes {precision}" in lines
    assert f"attention   model.attention=auto takes sdpa in {precision}" in lines


def test_a_broken_deepspeed(examine, monkeypatch):
    def fail(device):
        raise OSError("undefined symbol")

    monkeypatch.setattr(doctor, "import_deepspeed", fail)
    (problem,) = examine().problems
    assert "deepspeed cannot be imported (OSError: undefined symbol): reinstall" in problem


def test_devices_that_cannot_share_the_lanes(examine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    found = examine()
    assert any("deepspeed --num_gpus 2 --module neobert_train" in line for line in found.lines)
    assert "8 lanes" in found.notes[0]
    assert "2 of the 3 devices" in found.notes[0]


def test_it_tells_whether_the_hub_would_take_the_checkpoints(examine, hub, monkeypatch):
    def tell():
        findings = examine("hub.repository=org/name", "data.num_workers=0")
        lines = [line for line in findings.lines if line.startswith("hub ")]
        return " ".join(lines + [note for note in findings.notes if "org/name" in note])

    assert tell().endswith("org/name will be created; logged in as someone")
    hub.create("org/name")
    assert tell().endswith("org/name exists; logged in as someone")
    monkeypatch.setenv("HF_TOKEN", "hf_planted-wrong")
    assert tell().startswith(
        "nothing could be pushed to org/name: the Hub does not accept the token"
    )
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token: log in with `hf auth login`" in tell()
    monkeypatch.setattr(doctor, "_NETWORK_SECONDS", 0.3)
    monkeypatch.setenv("HF_TOKEN", "hf_planted-token")
    hub.fail("whoami", hangs=True)
    assert "the Hub cannot be reached" in tell()


def test_a_run_that_chose_its_precision_is_not_said_to_be_changed(tmp_path):
    run = ("+experiment=smoke", f"output_dir={tmp_path / 'run'}", "trainer.precision=auto")
    run_command(*run, "trainer.max_steps=1")
    assert "changed setting" not in run_command("doctor", *run, "trainer.max_steps=1")
