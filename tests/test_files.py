"""Files are written whole, with the mode of others, and read only where they are regular."""

import json
import math
import os

import pytest

from neobert_train.files import (
    DamagedFileError,
    clear_drafts,
    hash_file,
    open_atomically,
    parse_json,
    read_checked_json,
    read_text,
    remove,
    write_atomically,
    write_checked_json,
)

VALUE = {"a": [1, 2.5, None, True], "b": {"c": "ü\udc80"}, "d": math.inf}


def test_a_checked_value_comes_back_and_any_flipped_bit_is_noticed(tmp_path):
    file = tmp_path / "value.json"
    write_checked_json(file, VALUE)
    assert read_checked_json(file) == VALUE
    content = file.read_bytes()
    for position in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        file.write_bytes(damaged)
        try:
            found = read_checked_json(file)
        except DamagedFileError:
            continue
        # White space, or the name of a key of the envelope, which no reader takes for the value.
        assert found == VALUE or set(found) != set(VALUE)


def test_a_file_without_a_checksum_is_read_as_before(tmp_path):
    (tmp_path / "value.json").write_text(json.dumps([{"started": "now"}]))
    assert read_checked_json(tmp_path / "value.json") == [{"started": "now"}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"sha256": "", "content": ' + "[" * 900 + "]" * 900 + "}", "sha256|nested"),
        ("{", "not JSON"),
        ("1" * 5000, "not JSON"),
        ('{"sha256": [], "content": 1}', "is not what its sha256 was computed from"),
    ],
    ids=["deep", "deep inside", "cut off", "long number", "forged"],
)
def test_what_is_no_json_of_ours_is_named(tmp_path, text, words):
    (tmp_path / "value.json").write_text(text)
    with pytest.raises(DamagedFileError, match=words):
        read_checked_json(tmp_path / "value.json")


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "folder", "nothing"])
def test_only_regular_files_are_read_and_nothing_blocks(tmp_path, kind):
    file = tmp_path / "file"
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "link to a pipe":
            os.mkfifo(tmp_path / "pipe")
            file.symlink_to("pipe")
        case "device":
            file.symlink_to("/dev/zero")
        case "folder":
            file.mkdir()
    with pytest.raises(DamagedFileError):
        read_text(file)
    with pytest.raises(OSError, match="regular file" if kind != "nothing" else "No such file"):
        hash_file(file)


def test_more_than_is_sensible_is_not_read(tmp_path):
    file = tmp_path / "file"
    with open(file, "wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(DamagedFileError, match="more than 1,073,741,824 bytes"):
        read_text(file)
    file.write_bytes(b"\xff")
    with pytest.raises(DamagedFileError, match="not UTF-8"):
        read_text(file)


def test_writing_follows_no_link_that_lies_in_its_way(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / f".tmp-{os.getpid()}-file").symlink_to("precious")
    write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "precious").read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["file", "precious"]


def test_removing_a_link_leaves_what_it_leads_to(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "link").symlink_to("folder")
    remove(tmp_path / "link")
    assert os.listdir(tmp_path / "folder") == ["file"]
    remove(tmp_path / "folder")
    remove(tmp_path / "nothing")
    assert os.listdir(tmp_path) == []


def test_json_of_python_is_parsed():
    assert math.isnan(parse_json("NaN"))


def test_two_processes_that_write_a_file_each_put_a_whole_one_in_place(tmp_path):
    file = tmp_path / "file"
    with open_atomically(file) as ours:
        ours.write(b"half")
        if os.fork() == 0:
            write_atomically(file, "theirs")
            os._exit(0)
        os.wait()
        assert file.read_text() == "theirs"
        ours.write(b" and half")
    assert file.read_text() == "half and half"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    write_atomically(tmp_path / "file", "old")
    with pytest.raises(OSError, match="full"), open_atomically(tmp_path / "file"):
        raise OSError("full")
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_killed_processes_left_of_our_files_is_cleared_and_nothing_else(tmp_path):
    for name in (".tmp-a.json", ".tmp-12-a.json", ".tmp-b.json", ".tmp-x-a.json", "a.json"):
        (tmp_path / name).touch()
    (tmp_path / ".tmp-3-a.json").mkdir()
    clear_drafts(tmp_path, [tmp_path / "a.json"])
    assert sorted(os.listdir(tmp_path)) == [
        ".tmp-3-a.json",
        ".tmp-b.json",
        ".tmp-x-a.json",
        "a.json",
    ]
