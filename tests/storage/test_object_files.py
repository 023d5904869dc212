"""Files of object stores, whatever their file systems in fsspec say of them."""

import random
import time
from datetime import UTC, datetime, timedelta

import fsspec
import pytest

from neobert_train.storage import failures, object_files
from neobert_train.storage.object_files import ObjectRange
from neobert_train.storage.stored_files import Network, StorageError, StoredFile, list_files
from neobert_train.storage.versions import FileVersion
from support.misbehaving_server import Fault

CONTENT = random.Random(1).randbytes(2_500_000)
QUICK = Network(max_retries=4, timeout_seconds=30)


def read(file: StoredFile) -> bytes:
    with file.open() as stream:
        return stream.read()


def fail(file: StoredFile) -> StorageError:
    with pytest.raises(StorageError) as caught:
        read(file)
    return caught.value


def list_urls(pattern: str, network: Network) -> list[str]:
    return [file.path for file in list_files(pattern, network)]


@pytest.fixture
def memory():
    store = fsspec.filesystem("memory")
    for name in ("top/b.txt", "top/a.txt", "top/sub/c.txt", "top/sub/d.bin"):
        store.pipe_file(f"/{name}", name.encode())
    yield store
    store.rm("/top", recursive=True)


def test_object_stores_are_listed_and_read(memory, pauses):
    assert list_urls("memory://top/*.txt", QUICK) == ["memory:///top/a.txt", "memory:///top/b.txt"]
    assert list_urls("memory://top/?.txt", QUICK) == ["memory:///top/a.txt", "memory:///top/b.txt"]
    below = list_urls("memory://top", QUICK)
    assert below == list_urls("memory://top/", QUICK)
    assert [read(StoredFile(url)).decode() for url in below] == [
        "top/a.txt", "top/b.txt", "top/sub/c.txt", "top/sub/d.bin"
    ]  # fmt: skip
    assert list_urls("memory://top/**/*.txt", QUICK)[-1] == "memory:///top/sub/c.txt"
    assert list_urls("memory://top/a.txt", QUICK) == ["memory://top/a.txt"]
    assert list_urls("memory://top/none", QUICK) == ["memory://top/none"]
    assert list_urls("memory://top/*.none", QUICK) == []
    for pattern in ("memory://top/a.txt", "memory://top/a.*", "memory://top/"):
        listed = list_files(pattern, QUICK)[0]
        assert listed.known.version == StoredFile(listed.path).version  # told by the listing
    memory.pipe_file("/top/new.txt", b"new")
    assert "memory:///top/new.txt" in list_urls("memory://top/*.txt", QUICK)
    assert "no such file" in str(fail(StoredFile("memory://top/none")))
    assert "is a folder" in str(fail(StoredFile("memory://top/sub")))
    assert pauses == []


def test_short_answers_of_object_stores_are_noticed(memory, pauses, monkeypatch):
    whole = type(memory).cat_file
    answers = [b"top/", None]

    def cat_file(self, path, start=None, end=None, **kwargs):
        answer = answers.pop(0)
        return whole(self, path, start, end, **kwargs) if answer is None else answer

    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    assert read(StoredFile("memory://top/a.txt", QUICK)) == b"top/a.txt"
    assert len(pauses) == 1


def test_an_object_store_over_a_slow_line_is_asked_for_less(memory, pauses, monkeypatch):
    memory.pipe_file("/top/large.bin", CONTENT)
    whole, lengths = type(memory).cat_file, []

    def cat_file(self, path, start, end, **kwargs):
        lengths.append(end - start)
        time.sleep((end - start) / 2e6)
        return whole(self, path, start, end, **kwargs)

    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    with StoredFile("memory://top/large.bin", Network(4, 0.4)).open() as stream:
        assert stream.read(2_000_000) == CONTENT[:2_000_000]
    assert len(pauses) < len(lengths) / 2  # what was too much once is not asked for again


def test_a_store_that_gives_no_answer_is_given_up_in_time(memory, server, pauses, monkeypatch):
    begun = time.monotonic()
    monkeypatch.setattr(type(memory), "info", lambda *_, **__: server.released.wait())
    error = fail(StoredFile("memory://top/a.txt", Network(1, 0.2)))
    assert "no whole answer in" in str(error)
    # A file system that waits in fsspec's event loop, as those of s3 and gs do.
    (server.folder / "a.bin").write_bytes(CONTENT)
    server.script(Fault(bytes_per_second=20), repeat=True)
    with pytest.raises(failures.BrokenAnswerError, match=r"no whole answer in 0\.2 seconds"):
        ObjectRange(server.url("a.bin"), 0, 1000, FileVersion(None)).read(0.2)
    assert time.monotonic() - begun < 5


def test_a_file_of_an_object_store_that_changes_is_named(memory, pauses):
    file = StoredFile("memory://top/a.txt", QUICK).identify()
    assert read(file) == b"top/a.txt"
    for content, change in (
        (b"top/a.txt.", "10 bytes instead of 9"),
        (b"top/A.txt", "date "),
    ):
        memory.pipe_file("/top/a.txt", content)
        memory.store["/top/a.txt"].created += timedelta(seconds=5)  # dates are whole seconds
        error = fail(file)
        assert f"memory://top/a.txt was changed while the run reads it ({change}" in str(error)


@pytest.mark.parametrize(
    ("info", "marks"),
    [
        ({"ETag": '"ab"', "LastModified": "then"}, {"etag": "ab", "date": "then"}),
        ({"mtime": 1e9 + 0.25}, {"date": "1000000000"}),
        ({"created": datetime.fromtimestamp(1e9 + 0.75, UTC)}, {"date": "1000000000"}),
        ({"md5Hash": "x==", "generation": 7, "updated": "t"}, {"md5": "x==", "date": "t"}),
        (
            {"blob_id": "1f", "lfs": {"sha256": "2e", "size": 3}, "last_commit": None},
            {"sha256": "2e", "git hash": "1f"},
        ),
        ({"blob_id": "1f", "lfs": None}, {"git hash": "1f"}),
        ({}, {}),
    ],
)
def test_marks_are_found_in_what_stores_say_of_a_file(info, marks):
    version = object_files._find_version({"name": "a", "type": "file", "size": 3, **info})
    assert (version.size, dict(version.marks)) == (3, marks)


def test_missing_packages_and_protocols_are_named(monkeypatch):
    def get_filesystem_class(protocol):
        raise ImportError("Install s3fs to access S3")

    assert "protocol nope:// is not known" in str(fail(StoredFile("nope://a/b")))
    monkeypatch.setattr(fsspec, "get_filesystem_class", get_filesystem_class)
    assert "pip install s3fs" in str(fail(StoredFile("s3://bucket/a")))
    assert "pip install gcsfs" in str(fail(StoredFile("gs://bucket/a")))
