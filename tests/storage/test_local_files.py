"""Local files stay as they were when the run began, and what the system says of them is named."""

import contextlib
import errno
import os
import pickle
import random
import resource

import pytest

from neobert_train.storage import local_files
from neobert_train.storage.stored_files import StorageError, StoredFile

CONTENT = random.Random(1).randbytes(1_500_000)


def read(file: StoredFile) -> bytes:
    with file.open() as stream:
        return stream.read()


def test_local_files_are_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\nb\n")
    file = StoredFile(str(path))
    assert (file.is_remote, file.get_size(), file.can_seek()) == (False, 4, True)
    with file.open() as stream:
        assert list(stream) == [b"a\n", b"b\n"]
        stream.seek(100)
        assert stream.read() == b""


@pytest.mark.parametrize("size", [0, 1, 200_000, 1_000_000])
@pytest.mark.parametrize("is_open", [False, True])
def test_a_local_file_that_grows_or_shrinks_is_named(tmp_path, size, is_open):
    path = tmp_path / "a.bin"
    for change in (1, 100_000, -1):
        if size + change < 0:
            continue
        path.write_bytes(CONTENT[:size])
        file = StoredFile(str(path)).identify()
        stream = file.open() if is_open else None
        os.truncate(path, size + change)
        with pytest.raises(StorageError) as error:
            (stream or file.open()).read()
        message = f"{path} was changed while the run reads it ({size + change:,} bytes instead of"
        assert str(error.value).startswith(message)


@pytest.mark.parametrize("place", [0, 500_000, 999_999])
def test_an_edit_of_the_same_size_in_head_middle_or_tail_is_named(tmp_path, place):
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT[:1_000_000])
    file = pickle.loads(pickle.dumps(StoredFile(str(path)).identify()))
    assert read(file) == CONTENT[:1_000_000]
    os.utime(path)  # a copy is the same file
    assert read(file) == CONTENT[:1_000_000]
    with open(path, "r+b") as edited:
        edited.seek(place)
        edited.write(bytes([CONTENT[place] ^ 1]))
    assert "content hash " in str(fail(file))


def fail(file: StoredFile) -> StorageError:
    with pytest.raises(StorageError) as caught, file.open() as stream:
        stream.read()
    return caught.value


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "fs.file-max"),
        (errno.EACCES, "right to read it"),
        (errno.EIO, "check its disk"),
        (errno.ENOMEM, "free memory"),
        (errno.ESTALE, "mount its network file system again"),
        (errno.ENXIO, "check its storage"),
    ],
)
def test_what_the_system_says_of_a_file_names_it_with_the_fix(tmp_path, monkeypatch, number, fix):
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(local_files.os, "pread", refuse)
    error = fail(StoredFile(str(path)))
    assert f"{path}: cannot be read ({os.strerror(number)})" in str(error)
    assert fix in str(error)


def test_too_many_open_files_are_named(tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    file = StoredFile(str(tmp_path / "a.bin"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with pytest.raises(StorageError, match=r"a\.bin: cannot be read \(Too many open files\)"):
            stack.enter_context(open_many(file))


@contextlib.contextmanager
def open_many(file: StoredFile):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(file.open()) for _ in range(300)]


def test_a_missing_local_file_is_named(tmp_path):
    assert "restore it" in str(fail(StoredFile(str(tmp_path / "none"))))
