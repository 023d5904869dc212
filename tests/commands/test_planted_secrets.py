"""Credentials in settings and in the environment: in nothing that a run writes or prints."""

import shutil
import subprocess

import pytest

from neobert_train.config.saved import dump_config, find_differences
from neobert_train.data.sources import EMBEDDED_TEXTS
from neobert_train.sweep import Job
from support.misbehaving_server import MisbehavingServer
from support.programs import run_command
from support.small_vocabulary import list_small_settings

# All of them begin like this; the password has a quotation mark, which JSON and YAML escape.
PLANTED = "planted-"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with MisbehavingServer(tmp_path_factory.mktemp("served")) as server:
        shutil.copy(EMBEDDED_TEXTS, server.folder / "texts.parquet")
        yield server


def sign(server, signature):
    """A URL with user, password and a signature that is another tomorrow."""
    url = server.url("texts.parquet").replace("://", '://planted-user:planted-pass"word@')
    return f"{url}?X-Amz-Signature={signature}&X-Amz-Expires=60"


def find_written(folder):
    """The files that hold a secret."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if PLANTED.encode() in path.read_bytes()]


def clone_with_credentials(folder):
    """A git checkout whose remote has a user and a password, from which runs are started."""
    url = "https://planted-user:planted-password@host/repository.git"
    for arguments in (["init", "-q", folder], ["-C", folder, "remote", "add", "origin", url]):
        subprocess.run(["git", *arguments], check=True)
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run(
        ["git", "-C", folder, *identity, "commit", "-qm", "c", "--allow-empty"], check=True
    )
    return folder


def test_a_run_from_signed_urls_keeps_them_to_itself_and_goes_on_with_new_ones(server, tmp_path):
    arguments = [
        "+experiment=smoke", "data=files", "data.column=content", f"output_dir={tmp_path / 'run'}",
        "data.num_workers=0", "evaluation.max_tokens=2000", "checkpoint.save_every_steps=1",
        *list_small_settings(),
    ]  # fmt: skip
    environment = {
        "HF_TOKEN": "hf_planted-env", "AWS_SECRET_ACCESS_KEY": "planted-env",
        "AZURE_STORAGE_KEY": "planted-env", "WANDB_API_KEY": "planted-env",
    }  # fmt: skip
    output = run_command(
        *arguments, f"data.paths=['{sign(server, 'planted-signature')}']", "trainer.max_steps=2",
        "logging.wandb=offline", cwd=clone_with_credentials(tmp_path / "clone"), **environment,
    )  # fmt: skip
    assert any("planted-signature" in request.query for request in server.requests)
    output += run_command(
        *arguments, f"data.paths=['{sign(server, 'planted-signature-of-tomorrow')}']",
        "trainer.max_steps=3", cwd=tmp_path / "clone", **environment,
    )  # fmt: skip
    assert "Done: 3 steps" in output
    output += run_command("export", f"run_dir={tmp_path / 'run'}", **environment)
    assert find_written(tmp_path / "run") == []
    for file in (tmp_path / "run").glob("wandb/offline-run-*/*.wandb"):
        assert b"train/loss" in file.read_bytes()
        assert b"trainer.max_steps=" not in file.read_bytes()  # nothing of the command line
    assert PLANTED not in output
    assert "texts.parquet" in (tmp_path / "run" / "config.yaml").read_text()


def test_refused_credentials_are_not_shown(server, tmp_path):
    missing = sign(server, "planted-signature").replace("texts", "missing")
    output = run_command(
        "+experiment=smoke", "data=files", f"data.paths=['{missing}']", f"output_dir={tmp_path}",
        "data.max_retries=0", code=2,
    )  # fmt: skip
    assert "missing.parquet: no such file" in output
    assert PLANTED not in output


@pytest.mark.parametrize("command", ["prepare", "inspect_data", "doctor", "train_tokenizer"])
def test_other_commands_keep_them_to_themselves(server, tmp_path, command):
    settings = {
        "prepare": [f"data.prepared_dir={tmp_path / 'shards'}", "num_processes=1"],
        "train_tokenizer": [f"output={tmp_path / 'tokenizer'}", "max_documents=20", "vocab_size=600"],
    }  # fmt: skip
    output = run_command(
        command, "+experiment=smoke", "data=files", "data.column=content", f"output_dir={tmp_path / 'run'}",
        f"data.paths=['{sign(server, 'planted-signature')}']", *settings.get(command, []),
    )  # fmt: skip
    assert find_written(tmp_path) == []
    assert PLANTED not in output


def test_the_resolved_settings_are_shown_without_them(tmp_path):
    output = run_command(
        "+experiment=smoke", "data=files", "data.column=text", f"output_dir={tmp_path / 'run'}",
        "data.paths=['http://planted-user:planted-password@host/t.jsonl?sig=planted']", "--cfg", "job",
    )  # fmt: skip
    assert "- http://host/t.jsonl" in output
    assert PLANTED not in output


def test_a_sweep_names_no_folder_after_a_secret():
    urls = [f"https://planted-user:planted-password@host/a.txt?sig=planted-{n}" for n in (1, 2)]
    job = Job(tuple(f"data.paths=[{url}]" for url in urls), (f"data.paths=[{urls[0]}]", "seed=1"))
    assert PLANTED not in job.label
    assert PLANTED not in job.settings
    assert job.label.endswith("seed-1")


def test_saved_settings_differ_by_more_than_their_credentials(make_config):
    def compose(path):
        return make_config("data=files", f"data.paths=['{path}']")

    saved = compose("https://planted-user:planted-password@host/a.parquet?sig=planted-signature")
    assert PLANTED not in dump_config(saved)
    assert find_differences(saved, compose("https://host/a.parquet?sig=other"))[0] == []
    (problem,), _ = find_differences(saved, compose("https://host/b.parquet?sig=other"))
    assert problem == ("data.paths: ['https://host/a.parquet'] -> ['https://host/b.parquet']")
