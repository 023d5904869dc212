"""Uploads to a Hub on localhost: whole ones, and those that fail."""

import pytest

from neobert_train.export.hub import find_published, push_to_hub
from neobert_train.hub import HubError
from neobert_train.run.folders import owned_folder
from support.local_hub import READ_ONLY_TOKEN, TOKEN

WEIGHTS = bytes(range(256)) * 8192  # 2 MiB, which goes the way of large files


@pytest.fixture
def export(tmp_path):
    with owned_folder(tmp_path / "export", {}) as draft:
        (draft / "model.safetensors").write_bytes(WEIGHTS)
        (draft / "config.json").write_text("{}")
    return tmp_path / "export"


def push(export, revision="step-00000010", digest="a1", repository="org/name"):
    return push_to_hub(export, repository, revision, "Step 10", digest, private=False)


def test_only_what_the_export_wrote_is_uploaded(hub, export):
    (export / "private").mkdir()
    for name in ("private/config.json", "secrets.txt"):
        (export / name).write_text("mine")
    push(export, "main")
    assert hub.read("org/name").keys() == {
        ".gitattributes", ".neobert_train.json", "config.json", "model.safetensors",
    }  # fmt: skip
    assert hub.read("org/name")["model.safetensors"] == WEIGHTS


def test_a_branch_holds_its_own_files_only(hub, export):
    hub.write("org/name", {"later.txt": b"on main"})
    push(export)
    assert "later.txt" not in hub.read("org/name", "step-00000010")
    assert "config.json" not in hub.read("org/name")


def test_what_is_published_is_known_by_its_weights(hub, export):
    digests = {"step-00000010": "a1", "main": "b2", "step-00000020": "c3"}
    push(export)
    hub.write("org/name", {}, revision="step-00000020")  # made, and never uploaded to
    assert find_published("org/name", digests) == {"step-00000010"}
    push(export, "main", "b2")
    hub.write("org/name", {"README.md": b"edited on the page"})
    assert find_published("org/name", digests) == {"step-00000010", "main"}
    assert find_published("org/name", {"main": "d4", "step-00000010": "b2"}) == set()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"request": "PUT /lfs/", "drop_after": 1 << 20}, "cannot be reached"),
        ({"request": "PUT /lfs/", "status": 403}, "403|may not do this"),
        ({"request": "POST .*/commit/", "status": 503}, "503 Service Unavailable"),
        ({"request": "POST .*/commit/", "status": 429}, "429 Too Many Requests"),
        ({"request": "POST .*/preupload/", "hangs": True}, "cannot be reached .*Timeout"),
        ({"request": "POST .*/branch/", "drop_after": 0}, "cannot be reached"),
    ],
)
def test_a_failed_upload_publishes_nothing_and_the_next_one_all(
    hub, export, monkeypatch, fault, said
):
    monkeypatch.setattr("neobert_train.export.hub.REQUEST_SECONDS", 0.3)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.fail(**fault)
    with pytest.raises(HubError, match=said) as raised:
        push(export)
    assert "planted-" not in str(raised.value)
    assert find_published("org/name", {"step-00000010": "a1"}) == set()
    hub.heal()
    push(export)
    assert find_published("org/name", {"step-00000010": "a1"}) == {"step-00000010"}
    assert hub.read("org/name", "step-00000010")["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize(
    ("token", "repository", "said"),
    [
        ("", "org/name", "without a login only what is public: log in with `hf auth login`"),
        ("hf_planted-wrong", "org/name", "does not accept the token"),
        (READ_ONLY_TOKEN, "org/name", "the token may not do this with org/name"),
        (TOKEN, "others/name", "may not do this with others/name .*namespace others"),
    ],
)
def test_who_may_not_write_is_told_what_to_do(hub, export, monkeypatch, token, repository, said):
    hub.create("others/name")
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=said) as raised:
        push(export, repository=repository)
    assert "planted-" not in str(raised.value)
