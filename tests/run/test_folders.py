"""Folders appear whole, and what others have in them stays."""

import itertools
import os

import pytest

from neobert_train.errors import InputError
from neobert_train.files import write_checked_json
from neobert_train.run.folders import OWNED_FILE, list_owned_files, new_folder, owned_folder
from support.killed import run_until


def read_tree(folder):
    """The content of every file below a folder, by name; of links, where they lead."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_text()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def put(output, unlisted=None, **files):
    with owned_folder(output, unlisted or {}) as draft:
        for name, text in files.items():
            path = draft / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


def read_own(output):
    tree = read_tree(output)
    assert set(list_owned_files(output)) <= set(tree)
    del tree[OWNED_FILE]
    return tree


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    output = tmp_path / "a" / "b"
    with new_folder(output) as draft:
        (draft / "file").write_text("x")
        assert not output.exists()
    assert read_tree(output) == {"file": "x"}
    with pytest.raises(IsADirectoryError), new_folder(tmp_path / "c") as draft:
        raise IsADirectoryError  # of a library, about something else
    assert os.listdir(tmp_path) == ["a"]
    assert os.listdir(tmp_path / "a") == ["b"]


@pytest.mark.parametrize("make", [new_folder, lambda output: owned_folder(output, {})])
@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "pipe"])
def test_what_is_no_folder_is_not_replaced(tmp_path, make, kind):
    output, target = tmp_path / "output", tmp_path / "target"
    match kind:
        case "file":
            output.write_text("kept")
        case "link":
            target.mkdir()
            output.symlink_to("target")
        case "dangling link":
            output.symlink_to("target")
        case "pipe":
            os.mkfifo(output)
    before = sorted(os.listdir(tmp_path))
    with (
        pytest.raises(InputError, match=r"output is (a link|no folder): write output="),
        make(output),
    ):
        raise AssertionError
    assert sorted(os.listdir(tmp_path)) == before
    assert not target.exists() or os.listdir(target) == []


def test_a_new_folder_takes_the_place_of_an_empty_one_only(tmp_path):
    (tmp_path / "output").mkdir()
    with new_folder(tmp_path / "output") as draft:
        (draft / "file").write_text("x")
    with pytest.raises(InputError, match="output exists: write"), new_folder(tmp_path / "output"):
        raise AssertionError
    precious = tmp_path / "other" / "precious"
    with pytest.raises(InputError, match="other exists: write"), new_folder(tmp_path / "other"):
        precious.parent.mkdir() or precious.write_text("kept")  # by somebody else, meanwhile
    assert read_tree(tmp_path) == {"output/file": "x", "other/precious": "kept"}


def test_two_processes_do_not_write_the_same_folder(tmp_path):
    with new_folder(tmp_path / "output") as draft:
        (draft / "file").write_text("x")
        with (
            pytest.raises(InputError, match="another process is writing"),
            new_folder(tmp_path / "output"),
        ):
            raise AssertionError
    assert read_tree(tmp_path) == {"output/file": "x"}


def test_files_of_ours_are_replaced_and_removed_and_all_others_stay(tmp_path):
    output = tmp_path / "clone"
    put(output, card="old", weights="old", code__a="old", code__b="old")
    (output / ".git").mkdir()
    (output / ".git" / "config").write_text("of git")
    (output / "notes").write_text("mine")
    (output / "link").symlink_to("/etc/hostname")
    put(output, card="new", weights="new", code__a="new")
    assert read_own(output) == {
        "card": "new", "weights": "new", "code/a": "new", ".git/config": "of git", "notes": "mine",
        "link": "/etc/hostname",
    }  # fmt: skip
    assert set(list_owned_files(output)) == {OWNED_FILE, "card", "weights", "code/a"}


def test_a_folder_of_others_takes_the_files_in(tmp_path):
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "same").write_text("x")
    put(tmp_path, card="new", same="x")
    put(tmp_path, same="y")
    assert read_own(tmp_path) == {"notes": "mine", "same": "y"}


@pytest.mark.parametrize(
    ("obstacle", "words"),
    [
        ("edited", "card was edited since it was exported"),
        ("foreign", "weights is of no export"),
        ("link", "card is a link or no regular file"),
        ("link in the way", "weights is a link or no regular file"),
        ("pipe", "card is a link or no regular file"),
        ("folder", "card is a link or no regular file"),
        ("file for a folder", "code/a is a link or no regular file"),
        ("link for a folder", "code/a is a link or no regular file"),
    ],
)
def test_what_lies_in_the_way_is_named_before_anything_is_written(tmp_path, obstacle, words):
    output = tmp_path / "output"
    put(output, card="old", other="old")
    card = output / "card"
    match obstacle:
        case "edited":
            card.write_text("by hand")
        case "foreign":
            (output / "weights").write_text("mine")
        case "link":
            card.rename(output / "elsewhere")
            card.symlink_to("elsewhere")
        case "link in the way":
            (output / "weights").symlink_to("nothing")
        case "pipe":
            card.unlink()
            os.mkfifo(card)
        case "folder":
            card.unlink()
            card.mkdir()
        case "file for a folder":
            (output / "code").write_text("mine")
        case "link for a folder":
            (tmp_path / "elsewhere").mkdir()
            (output / "code").symlink_to("../elsewhere")
    before = read_tree(tmp_path)
    with pytest.raises(InputError, match=f"would be written over: move them(.|\n)*{words}"):
        put(output, card="new", weights="new", code__a="new")
    assert read_tree(tmp_path) == before


def test_an_edited_file_that_is_no_longer_written_stays(tmp_path):
    put(tmp_path, card="old", other="old")
    (tmp_path / "other").write_text("by hand")
    put(tmp_path, card="new")
    assert read_own(tmp_path) == {"card": "new", "other": "by hand"}


@pytest.mark.parametrize(
    "content",
    [[], {"files": []}, {"files": {"a": "b"}}, {"files": {"../a": []}}, {"files": {"/a": []}}],
    ids=["list", "list of files", "no list", "above", "absolute"],
)
def test_a_damaged_list_is_named(tmp_path, content):
    write_checked_json(tmp_path / OWNED_FILE, content)
    with pytest.raises(InputError, match=r"neobert_train.json cannot be read .*: remove it"):
        put(tmp_path, card="new")
    assert os.listdir(tmp_path) == [OWNED_FILE]


@pytest.mark.parametrize("is_new", [True, False])
def test_killed_at_any_moment_the_next_call_completes_it(tmp_path, is_new):
    for moment in itertools.count():
        output = tmp_path / str(moment)
        if not is_new:
            put(output, card="old", weights="old", gone="old")
            (output / "notes").write_text("mine")
        killed = run_until(moment, lambda output=output: put(output, card="new", weights="new"))
        kept = {"notes": "mine"} if not is_new else {}
        if output.exists():
            found = read_tree(output)
            assert found.get("notes") == kept.get("notes")
            assert found["card"] in ("old", "new")
        put(output, card="newer", weights="new")
        assert read_own(output) == {"card": "newer", "weights": "new", **kept}
        if not killed:
            break
    assert moment > 20


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written \(File exists\): make room"):
        put(tmp_path / "file" / "output", card="new")
