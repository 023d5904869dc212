"""Runs that push their checkpoints to a Hub on localhost, which fails in many ways."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from neobert_train.run.checkpoint import load_weights
from support.local_hub import READ_ONLY_TOKEN, TOKEN, LocalHub
from support.programs import run_command
from support.small_vocabulary import list_small_settings

SETTINGS = [
    "+experiment=smoke", "trainer.max_steps=1", "checkpoint.save_every_steps=1",
    "checkpoint.keep_every_steps=2", "checkpoint.keep_last=1", "evaluation.max_tokens=0",
    "logging.report=false", "data.num_workers=0", "hub.repository=org/name",
    *list_small_settings(),
]  # fmt: skip
STEPS = {"main": 1, "step-00000000": 0}


@pytest.fixture
def hub():
    with LocalHub() as hub:
        yield hub


def read_weights_digest(run, step):
    manifest = json.loads((run / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())
    return manifest["files"]["model.safetensors"]["sha256"]


def assert_published(hub, run):
    """Every branch has the weights of its checkpoint, and nothing is left of the work."""
    assert hub.branches("org/name") == STEPS.keys()
    for branch, step in STEPS.items():
        head = hub.repositories["models/org/name"].branches[branch]
        assert read_weights_digest(run, step) in head.message
        assert head.title == f"Step {step} of a run of neobert_train"
        assert {"model.safetensors", "config.json", "README.md"} <= head.files.keys()
    assert not list(run.glob(".tmp-*"))


def test_a_run_publishes_what_it_keeps_and_the_last_one_as_main(hub, tmp_path):
    run, environment = tmp_path / "run", hub.environment(tmp_path / "home")
    hub.fail("POST /api/repos/create", times=1, status=503)
    command = [*SETTINGS, f"output_dir={run}", "hub.license=mit"]
    output = run_command(*command, **environment)
    assert (
        "not pushed to org/name on the Hub yet: the Hub answers 503 Service Unavailable (a planted "
        "fault); tries again until the run ends"
    ) in output
    assert output.splitlines()[-1] == "  on the Hub       org/name"
    assert_published(hub, run)
    assert b"license: mit" in hub.read("org/name")["README.md"]
    assert "planted" not in "".join(path.read_text() for path in run.glob("*.json*"))


def test_the_same_command_on_a_finished_run_publishes_what_is_missing(finished_run, hub, tmp_path):
    command = [
        "+experiment=smoke", f"output_dir={finished_run}", "trainer.max_steps=3",
        "checkpoint.save_every_steps=1", "checkpoint.keep_last=2", "data.num_workers=0",
        "hub.repository=org/name", "hub.private=true",
    ]  # fmt: skip
    environment = hub.environment(tmp_path / "home")
    for _ in range(2):
        output = run_command(*command, **environment)
        assert "is complete after 3 steps" in output
        assert output.splitlines()[-1] == "  on the Hub       org/name"
    branches = hub.repositories["models/org/name"].branches
    assert branches.keys() == {"main"}
    assert read_weights_digest(finished_run, 3) in branches["main"].message
    assert len(hub.titles("org/name")) == 2  # the first commit of every repository is not ours


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "token", "said"),
    [
        (None, READ_ONLY_TOKEN, "the token may not do this with org/name"),
        (None, "hf_planted-wrong", "the Hub does not accept the token"),
        (None, "", "log in with `hf auth login`, or set HF_TOKEN"),
        ({"request": "", "status": 429}, TOKEN, "the Hub answers 429 Too Many Requests"),
        ({"request": "", "hangs": True}, TOKEN, "pushing to org/name on the Hub, for at most 3 s"),
        ({"request": "PUT /lfs/", "hangs": True}, TOKEN, "for at most 3 s (hub.wait_seconds)"),
    ],
)
def test_a_hub_that_takes_nothing_leaves_the_run_as_it_is(hub, tmp_path, fault, token, said):
    if fault:
        hub.fail(**fault)
    run = tmp_path / "run"
    command = [*SETTINGS, f"output_dir={run}", "hub.wait_seconds=3"]
    output = run_command(*command, **hub.environment(tmp_path / "home", token))
    assert said in output
    assert "Done: 1 steps" in output
    assert (
        "not pushed to org/name on the Hub: step-00000000, main. The same command pushes what is missing"
    ) in output
    assert f"export run_dir={run} push_to_hub=org/name revision=step-00000000 step=0" in output
    assert "planted-" not in output.replace("a planted fault", "")
    assert json.loads((run / "outcome.json").read_text())["content"]["exit_code"] == 0
    assert not list(run.glob(".tmp-*"))
    run_command(*SETTINGS[:-1], f"output_dir={tmp_path / 'alone'}")
    weights, expected = (
        load_weights(folder / "checkpoints" / "step-00000001")
        for folder in (run, tmp_path / "alone")
    )
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in expected)


# A small file system that only the processes of the test see.
FULL_DISK = """
mount -t tmpfs -o size="$SIZE" none "$DISK" || exit 77
cp -r "$RUN" "$DISK/run"
"$@"
ls -A "$DISK/run"
"""


@pytest.mark.slow
def test_a_disk_without_room_for_an_export_is_named(finished_run, hub, tmp_path):
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    (tmp_path / "disk").mkdir()
    size = sum(path.stat().st_size for path in finished_run.rglob("*")) + (4 << 20)
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", FULL_DISK, "sh",
         sys.executable, "-m", "neobert_train", "+experiment=smoke", "data.num_workers=0",
         f"output_dir={tmp_path / 'disk' / 'run'}", "trainer.max_steps=3",
         "checkpoint.save_every_steps=1", "checkpoint.keep_last=2", "hub.repository=org/name",
         "hub.wait_seconds=40"],
        env={**os.environ, **hub.environment(tmp_path / "home"), "RUN": str(finished_run),
             "DISK": str(tmp_path / "disk"), "SIZE": str(size)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=180,
    )  # fmt: skip
    if done.returncode == 77 or "unshare" in done.stdout:
        pytest.skip(f"no file system of its own: {done.stdout}")
    assert "cannot be written (No space left on device): make room" in done.stdout
    assert "not pushed to org/name on the Hub: main. The same command" in done.stdout
    assert "Traceback" not in done.stdout
    assert ".tmp-" not in done.stdout.rpartition("push_to_hub")[2]


def start(hub, tmp_path, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "neobert_train", *SETTINGS, f"output_dir={tmp_path / 'run'}", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **hub.environment(tmp_path / "home")},
    )  # fmt: skip


def wait_for(hub, request, process):
    deadline = time.monotonic() + 120
    while not any(request in seen for seen in hub.requests):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_ended_during_an_upload_publishes_all_at_its_next_start(
    hub, tmp_path, number
):
    hub.fail("PUT /lfs/", hangs=True)
    only_step_0 = "checkpoint.keep_every_steps=100000"
    process = start(hub, tmp_path, only_step_0, "trainer.max_steps=100000")
    wait_for(hub, "PUT /lfs/", process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == (3 if number is signal.SIGTERM else -number), output
    if number is signal.SIGTERM:
        assert "not pushed to org/name on the Hub: step-00000000" in output
    hub.heal()
    step = max(int(path.name[5:]) for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    arguments = [only_step_0, f"output_dir={tmp_path / 'run'}", f"trainer.max_steps={step}"]
    run_command(*SETTINGS, *arguments, **hub.environment(tmp_path / "home"))
    branches = hub.repositories["models/org/name"].branches
    assert read_weights_digest(tmp_path / "run", step) in branches["main"].message
    assert read_weights_digest(tmp_path / "run", 0) in branches["step-00000000"].message
