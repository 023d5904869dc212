"""Names of the Hub with a revision, downloads, and what is said of those that fail."""

import pytest

from neobert_train.errors import InputError
from neobert_train.hub import (
    HubError,
    describe_hub_error,
    download_files,
    pin_revision,
    split_revision,
)
from neobert_train.models.folder import find_model_folder, pin_model
from neobert_train.tokenizers.loading import SHIPPED_TOKENIZER, load_tokenizer, pin_tokenizer
from support.local_hub import READ_ONLY_TOKEN


def test_a_revision_stands_behind_the_last_part_of_the_name():
    assert split_revision("org/name") == ("org/name", None)
    assert split_revision("org/name@step-00000010") == ("org/name", "step-00000010")
    assert split_revision("org/name@refs/pr/3") == ("org/name", "refs/pr/3")
    assert split_revision("org/name@") == ("org/name", None)


def test_branches_tags_and_commits_are_downloaded_and_pinned(hub):
    first = hub.write("org/name", {"config.json": b"1", "notes.txt": b"not asked for"})
    second = hub.write("org/name", {"config.json": b"2"}, revision="step-00000010")
    hub.create("org/name").tags["v1"] = hub.create("org/name").branches["main"]
    for revision, commit, content in (
        ("", first, "1"), ("@main", first, "1"), ("@v1", first, "1"),
        ("@step-00000010", second, "2"), (f"@{second}", second, "2"),
    ):  # fmt: skip
        folder = download_files(f"org/name{revision}", ["config.json"])
        assert (folder / "config.json").read_text() == content
        assert [path.name for path in folder.iterdir()] == ["config.json"]
        assert pin_revision(f"org/name{revision}", folder) == f"org/name@{commit}"


def test_a_local_path_with_a_sign_of_a_revision_is_a_path(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "org" / "name@main"
    folder.mkdir(parents=True)
    for file in SHIPPED_TOKENIZER.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    assert find_model_folder("org/name@main", "model=").samefile(folder)
    assert load_tokenizer("org/name@main").vocab_size == 30_522
    assert pin_model("org/name@main", "model=") is None
    assert pin_tokenizer("org/name@main") is None
    assert pin_tokenizer("bert-base-uncased") is None
    assert hub.requests == []


def test_a_commit_that_is_in_the_cache_needs_no_hub(hub):
    commit = hub.write("org/name", {"config.json": b"1"})
    download_files("org/name", ["config.json"])
    hub.fail("", status=503)
    folder = download_files(f"org/name@{commit}", ["config.json"])
    assert (folder / "config.json").read_text() == "1"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("org/missing", "the Hub has no repository org/missing, or the token may not see it"),
        ("org/name@v9", "org/name has no branch, tag or commit v9"),
        ("./a/b/c", "'./a/b/c' is no name of a repository, which is org/name"),
    ],
)
def test_what_is_not_on_the_hub_is_named(hub, name, said):
    hub.write("org/name", {"config.json": b"1"})
    with pytest.raises(HubError, match=said):
        download_files(name, ["config.json"])
    with pytest.raises(InputError, match=f"init_from={name} is neither a folder nor .*{said}"):
        find_model_folder(name, f"init_from={name}")
    with pytest.raises(InputError, match=f"the tokenizer '{name}' is neither .*{said}"):
        load_tokenizer(name)


def test_a_wrong_token_a_missing_one_and_a_refused_one_are_told_apart(hub, monkeypatch):
    hub.write("org/name", {"config.json": b"1"})
    hub.create("org/name").is_private = True

    def explain():
        with pytest.raises(HubError) as raised:
            download_files("org/name", ["config.json"])
        return str(raised.value)

    monkeypatch.delenv("HF_TOKEN")
    assert "without a login only what is public" in explain()
    monkeypatch.setenv("HF_TOKEN", "hf_planted-wrong")
    assert "does not accept the token" in explain()
    monkeypatch.setenv("HF_TOKEN", READ_ONLY_TOKEN)
    hub.fail("GET", status=403, message=f"no rights for {READ_ONLY_TOKEN}")
    assert "the token may not do this with org/name (no rights for (hidden))" in explain()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"status": 503}, "the Hub answers 503 Service Unavailable (a planted fault)"),
        ({"status": 429}, "the Hub answers 429 Too Many Requests (a planted fault)"),
        ({"drop_after": 0}, "the Hub cannot be reached ("),
        ({"hangs": True}, "the Hub cannot be reached ("),
    ],
)
def test_a_hub_that_fails_or_hangs_is_not_waited_for_without_end(hub, monkeypatch, fault, said):
    monkeypatch.setattr("neobert_train.hub.REQUEST_SECONDS", 0.3)
    hub.write("org/name", {"config.json": b"1"})
    hub.fail("GET /api/models", **fault)
    with pytest.raises(HubError) as raised:
        download_files("org/name", ["config.json"])
    assert said in str(raised.value)


def test_nothing_secret_is_in_what_is_said_of_an_error(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted-token")
    error = ValueError("Bearer hf_planted-token at https://s3.host/a?X-Amz-Signature=planted-x\n!")
    said = describe_hub_error(error, "org/name")
    assert said == (
        "the Hub cannot be reached (ValueError: Bearer (hidden) at https://s3.host/a !)"
    )
