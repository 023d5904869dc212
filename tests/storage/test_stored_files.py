"""Remote files read like local ones, whatever the network does; what cannot be mended is named."""

import asyncio
import contextlib
import gzip
import io
import itertools
import logging
import multiprocessing
import os
import pickle
import random
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace

import aiohttp
import fsspec
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neobert_train.storage import failures, retries
from neobert_train.storage.http_files import get_http_file_system
from neobert_train.storage.remote_readers import BlockReader
from neobert_train.storage.stored_files import Network, StorageError, StoredFile, is_url, list_files
from neobert_train.urls import show_url
from support.misbehaving_server import Fault, MisbehavingServer

CONTENT = random.Random(1).randbytes(2_500_000)  # several requests
# So patient that a busy machine does not look like a fault, but where a server is silent.
QUICK = Network(max_retries=4, timeout_seconds=30)
IMPATIENT = Network(max_retries=20, timeout_seconds=0.3)
SECRETS = ("alice", "hunter2", "Signature", "s3cr3t")


@pytest.fixture
def stored(server: MisbehavingServer) -> StoredFile:
    """CONTENT on the server, under a URL full of secrets."""
    (server.folder / "data").mkdir()
    (server.folder / "data/a.bin").write_bytes(CONTENT)
    url = server.url("data/a.bin?Signature=s3cr3t&x=%2F", userinfo="alice:hunter2@")
    return StoredFile(url, QUICK)


def read(file: StoredFile) -> bytes:
    with file.open() as stream:
        return stream.read()


def fail(file: StoredFile) -> StorageError:
    with pytest.raises(StorageError) as caught:
        read(file)
    error = caught.value
    # A traceback shows nothing of the errors below it, which quote URLs.
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    assert not any(secret in str(error) for secret in SECRETS), error
    return error


def is_silent(fault: Fault) -> bool:
    return fault.stall_after is not None


# --- faults that pass ---

PASSING = {
    "408": Fault(status=408),
    "429": Fault(status=429),
    "500": Fault(status=500),
    "502": Fault(status=502),
    "503": Fault(status=503, retry_after="7"),
    "reset before the answer": Fault(reset_after=-1),
    "reset": Fault(reset_after=100),
    "no answer": Fault(stall_after=-1),
    "stalled": Fault(stall_after=100),
    "cut short": Fault(close_after=100),
    "no body": Fault(close_after=0),
    "Content-Length is short": Fault(shorten_to=100),
    "range ignored": Fault(ignores_range=True),
    "other bytes": Fault(shifts_range=True),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
def test_fault_between_good_answers_is_survived(server, stored, pauses, fault):
    server.script(Fault(), fault, fault, Fault(), fault)  # size, first block, second block
    if is_silent(fault):
        stored = StoredFile(stored.path, IMPATIENT)
    assert read(stored) == CONTENT
    assert server.is_script_over
    # aiohttp mends a reset of a kept connection by itself.
    assert len(pauses) == 3 or is_silent(fault) or fault.reset_after == -1


@pytest.mark.parametrize("name", ["503", "429", "reset", "no answer", "stalled", "cut short"])
def test_fault_of_a_server_without_ranges_is_survived(server, stored, pauses, name):
    server.ignores_ranges = True
    server.script(Fault(), PASSING[name], PASSING[name])
    if is_silent(PASSING[name]):
        stored = StoredFile(stored.path, IMPATIENT)
    assert read(stored) == CONTENT
    assert len(pauses) == 2 or is_silent(PASSING[name])


@pytest.mark.parametrize("name", ["503", "no answer", "reset before the answer"])
def test_fault_while_asking_for_the_size_is_survived(server, stored, pauses, name):
    server.script(PASSING[name], PASSING[name])
    if is_silent(PASSING[name]):
        stored = StoredFile(stored.path, IMPATIENT)
    assert stored.get_size() == len(CONTENT)
    assert server.is_script_over


def test_what_a_slow_line_gives_in_time_is_kept(server, pauses):
    # The whole takes three times as long as an attempt may.
    (server.folder / "slow").write_bytes(CONTENT[:400_000])
    server.script(Fault(bytes_per_second=400_000), repeat=True)
    assert read(StoredFile(server.url("slow"), Network(4, 0.3))) == CONTENT[:400_000]
    assert pauses == []


def test_over_a_slow_line_less_is_asked_for_at_a_time():
    asked, line = [], [1 << 18] * 5 + [1 << 30] * 8  # most bytes that come in time

    def read_range(start: int, stop: int) -> bytes:
        asked.append(stop - start)
        return bytes(min(stop - start, line.pop(0)))

    reader, buffer = BlockReader(read_range, 1 << 40), bytearray(1 << 24)
    while line:
        assert reader.readinto(buffer)
    assert asked[0] == 1 << 24
    assert max(asked[1:5]) <= (1 << 18) * 5 / 4
    assert asked[-1] > 3 * asked[4]


def test_a_slow_server_without_ranges_is_read_on(server, pauses):
    server.ignores_ranges = True
    (server.folder / "slow").write_bytes(CONTENT)
    server.script(Fault(), Fault(bytes_per_second=5e6), repeat=True)
    with StoredFile(server.url("slow"), Network(4, 0.3)).open() as stream:
        stream.seek(2_000_000)  # passes over them at the line's rate
        assert stream.read() == CONTENT[2_000_000:]
    assert pauses == []


def test_a_failure_costs_one_block(server, stored, pauses):
    with stored.open() as stream:
        stream.read(1_100_000)
        server.requests.clear()
        server.script(Fault(reset_after=1000))
        assert stream.read() == CONTENT[1_100_000:]
    ranges = [request.headers["range"] for request in server.requests]
    assert ranges[0] == ranges[1]
    assert int(ranges[0].split("=")[1].split("-")[0]) >= 1_000_000


def test_a_refused_connection_is_retried(pauses):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    error = fail(StoredFile(f"http://127.0.0.1:{port}/a.bin", QUICK))
    assert not error.is_permanent
    assert len(pauses) == QUICK.max_retries
    assert f"http://127.0.0.1:{port}/a.bin: not read after 5 attempts" in str(error)
    assert f"Check that this machine reaches 127.0.0.1:{port}" in str(error)


def test_an_unknown_host_is_retried(pauses, monkeypatch):
    calls = []

    def getaddrinfo(*args, **kwargs):
        calls.append(args)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    error = fail(StoredFile("http://no-such-host.invalid/a.bin", QUICK))
    assert "Temporary failure in name resolution" in str(error)
    assert "reaches no-such-host.invalid" in str(error)
    assert len(calls) >= len(pauses) == QUICK.max_retries


@pytest.mark.parametrize("name", ["503", "reset", "stalled", "cut short", "other bytes"])
def test_retries_end(server, stored, pauses, name):
    server.script(Fault(), PASSING[name], repeat=True)
    seconds = 0.3 if is_silent(PASSING[name]) else 30
    error = fail(StoredFile(stored.path, Network(QUICK.max_retries, seconds)))
    assert len(pauses) == QUICK.max_retries
    assert not error.is_permanent
    for part in (server.host, "/data/a.bin", "5 attempts", "data.max_retries", "data.timeout_sec"):
        assert part in str(error)
    if name == "503":
        assert "HTTP 503 Service Unavailable" in str(error)


def test_no_retries_is_one_attempt(server, stored, pauses):
    server.script(Fault(status=503), repeat=True)
    error = fail(StoredFile(stored.path, Network(max_retries=0)))
    assert "after 1 attempt," in str(error)
    assert len(server.requests) == 1
    assert pauses == []


@pytest.mark.parametrize("what", ["block", "stream", "page"])
def test_a_server_that_drips_is_given_up_in_time(server, stored, pauses, what):
    """A byte now and then is no progress."""
    network, begun = Network(1, 0.4), time.monotonic()
    if what == "page":
        (server.folder / "page").mkdir()
        for number in range(100):
            (server.folder / f"page/{number}.txt").touch()
        server.script(Fault(bytes_per_second=20), repeat=True)
        with pytest.raises(StorageError, match=r"no answer in 0\.\d+ seconds"):
            list_files(server.url("page/"), network)
    else:
        server.ignores_ranges = what == "stream"
        server.script(
            *[Fault()] * (1 if what == "stream" else 2), Fault(bytes_per_second=20), repeat=True
        )
        error = fail(StoredFile(stored.path, network))
        assert re.search(r"only \d+ bytes came in 0\.\d+ seconds", str(error))
    assert time.monotonic() - begun < 5
    assert len(pauses) == 1


class Clock:
    """Stands for the clock of a request, whose attempts and pauses take no real time."""

    def __init__(self, monkeypatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(retries.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(retries, "_sleep", self.advance)

    def advance(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    max_retries=st.integers(0, 12),
    timeout=st.floats(0.01, 600),
    attempts=st.lists(
        st.tuples(st.floats(0, 1), st.none() | st.integers(0, 2000)), min_size=1, max_size=13
    ),
)
def test_attempts_and_pauses_stay_within_their_time(monkeypatch, max_retries, timeout, attempts):
    clock, num_attempts = Clock(monkeypatch), itertools.count()

    class Busy(Exception):
        status = 503

    def request(seconds: float) -> None:
        share, retry_after = attempts[next(num_attempts) % len(attempts)]
        assert 0 < seconds <= timeout
        clock.advance(share * seconds)
        error = Busy()
        error.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        raise error

    with pytest.raises(StorageError):
        retries.retry(request, "http://host/a", Network(max_retries, timeout))
    assert clock.now <= timeout * (max_retries + 1) * (1 + 1e-9)
    if all(share < 0.5 and not asked for share, asked in attempts):
        assert next(num_attempts) == max_retries + 1  # fast failures use all of them


def test_a_server_that_asks_for_a_longer_wait_than_allowed_ends_it(server, stored, pauses):
    server.script(Fault(status=429, retry_after="3600"), repeat=True)
    error = fail(stored)
    assert pauses == []
    assert not error.is_permanent
    assert (
        f"{server.host} asks to wait 3,600 seconds (HTTP 429 Too Many Requests), longer than a "
        f"request may take: data.timeout_seconds=30 times (data.max_retries=4 + 1)"
    ) in str(error)


# --- faults that stay ---


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, ["no such file (HTTP 404 Not Found)", "check its name"]),
        (410, ["no such file (HTTP 410 Gone)"]),
        (401, ["access was refused (HTTP 401 Unauthorized)", "token", "missing, expired"]),
        (403, ["access was refused (HTTP 403 Forbidden)", "without access to", "signed URL"]),
        (400, ["cannot be read (HTTP 400 Bad Request)", "check the URL"]),
        (204, ["HTTP 204"]),
    ],
)
@pytest.mark.parametrize("requests_before", [0, 1])
def test_what_stays_is_named(server, stored, pauses, status, words, requests_before):
    server.script(*[Fault()] * requests_before, Fault(status=status), repeat=True)
    error = fail(stored)
    assert all(word in str(error) for word in [*words, f"http://{server.host}/data/a.bin"])
    assert error.is_permanent is (status != 204)
    assert pauses == [] or status == 204


@pytest.mark.parametrize("target", ["ftp://u:p@host/a?Signature=x", "file:///etc/passwd", "x:y"])
def test_a_redirect_to_another_kind_of_url_is_final(server, stored, pauses, target):
    server.script(Fault(redirect=target), repeat=True)
    error = fail(stored)
    shown = show_url(target) if "//" in target else target
    assert f"answers with a redirect to {shown}, and only those to http:// and https://" in str(
        error
    )
    assert len(server.requests) == 1


def test_redirects_without_end_are_final(server, stored, pauses):
    server.script(Fault(redirect=server.url("data/a.bin")), repeat=True)
    assert "redirects without end" in str(fail(stored))
    assert pauses == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_redirect_from_http_to_https_is_followed(server, tmp_path, monkeypatch):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", tmp_path / "key", "-out", tmp_path / "certificate", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    trusting = ssl.create_default_context(cafile=tmp_path / "certificate")
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)
    with MisbehavingServer(tmp_path / "secure") as secure:
        secure.use_tls(tmp_path / "certificate", tmp_path / "key")
        (secure.folder / "a.bin").write_bytes(CONTENT)
        (secure.folder / "b.bin").touch()
        server.script(Fault(redirect=secure.url("a.bin")), repeat=True)
        assert read(StoredFile(server.url("a.bin"), QUICK)) == CONTENT
        # The page of a folder may name its files by the scheme it was redirected to.
        secure.page_prefix = server.url("").replace("http:", "https:")
        server.script(Fault(redirect=secure.url("")), repeat=True)
        found = list_urls(server.url(""), QUICK)
        assert found == [f"https://{server.host}/{name}.bin" for name in "ab"]


def test_refused_names_the_login_of_its_service():
    for url, login in (
        ("hf://datasets/org/name/a.parquet", "hf auth login"),
        ("https://huggingface.co/datasets/org/name/resolve/main/a.parquet", "hf auth login"),
        ("s3://bucket/a.parquet", "aws"),
        ("gs://bucket/a.parquet", "gcloud auth"),
    ):
        error = failures.describe_permanent(PermissionError("no"), url)
        assert login in str(error)


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_a_remote_file_that_changes_is_named_and_costs_no_request(
    server, stored, pauses, ignores_ranges
):
    server.ignores_ranges, path = ignores_ranges, server.folder / "data/a.bin"
    file = stored.identify()
    server.requests.clear()
    with file.open() as stream:
        assert stream.read(10) == CONTENT[:10]
    assert len(server.requests) == 1  # none to ask for the size
    for content, change in (
        (CONTENT + b"more", "2,500,004 bytes instead of 2,500,000"),
        (CONTENT[:-1], "2,499,999 bytes instead of 2,500,000"),
        (b"*" + CONTENT[1:], "etag "),
    ):
        path.write_bytes(CONTENT)
        os.utime(path, (1e9, 1e9))
        file = replace(stored, known=None).identify()
        path.write_bytes(content)
        error = fail(file)
        assert f"{server.host}/data/a.bin was changed while the run reads it ({change}" in str(
            error
        )
    assert pauses == []


@pytest.mark.parametrize("tells", [set(), {"Last-Modified"}, {"ETag"}])
def test_a_server_may_tell_less_of_its_files(server, stored, tells):
    server.tells = tells
    os.utime(server.folder / "data/a.bin", (1e9, 1e9))
    file = stored.identify()
    server.tells = {"ETag", "Last-Modified"}  # as another machine behind the same name may do
    assert read(file) == CONTENT
    (server.folder / "data/a.bin").write_bytes(CONTENT[::-1])
    assert tells == set() or "was changed" in str(fail(file))


def test_mirrors_with_other_etags_give_the_same_file(server, stored):
    os.utime(server.folder / "data/a.bin", ns=(10**18, 10**18))
    file = stored.identify()
    os.utime(server.folder / "data/a.bin", ns=(10**18, 10**18 + 1))  # another ETag, the same second
    assert read(file) == CONTENT


def test_a_range_beyond_a_file_that_shrank_is_named(server, stored, pauses):
    with stored.open() as stream:
        stream.read(10)
        (server.folder / "data/a.bin").write_bytes(CONTENT[:100])
        with pytest.raises(StorageError, match="100 bytes instead of 2,500,000"):
            stream.read()
    assert pauses == []


def test_packing_that_was_not_asked_for_is_named(server, stored):
    server.encoding = "gzip"
    assert "packed with gzip" in str(fail(stored))
    assert all(r.headers["accept-encoding"] == "identity" for r in server.requests)


def test_gzip_file_comes_as_it_is_stored(server, stored):
    server.encoding = "gzip"  # as many servers say of .gz files
    (server.folder / "a.jsonl.gz").write_bytes(gzip.compress(CONTENT))
    with StoredFile(server.url("a.jsonl.gz"), QUICK).open() as stream, gzip.open(stream) as lines:
        assert lines.read() == CONTENT


def test_an_untrusted_certificate_is_named():
    key = SimpleNamespace(host="host", port=443, is_ssl=True, ssl=True)
    error = aiohttp.ClientConnectorCertificateError(
        key, ssl.SSLCertVerificationError("self-signed")
    )
    error.__cause__ = error.certificate_error
    assert not failures.is_transient(error)
    assert "certificate of host is not trusted" in str(
        failures.describe_permanent(error, "https://host/a")
    )


def test_what_is_no_url_is_named(pauses):
    error = fail(StoredFile("https://alice:hunter2/w@host/a?Signature=s3cr3t"))
    assert "is not a URL" in str(error)
    assert "%2F" in str(error)
    assert "is not a URL" in str(fail(StoredFile("https:///a?Signature=s3cr3t")))
    assert pauses == []


def test_a_mistake_in_the_program_is_not_dressed_up(pauses):
    def request():
        raise TypeError("a bug")

    with pytest.raises(TypeError):
        retries.retry(request, "http://host/a", QUICK)


# --- pauses, warnings, secrets ---


def test_pauses_grow_are_bounded_and_jittered(monkeypatch):
    bounds = []
    monkeypatch.setattr(retries, "_uniform", lambda low, high: bounds.append((low, high)) or high)
    pauses = [retries.compute_pause(attempt, 0, 1000) for attempt in (0, 1, 2, 3, 6, 7, 5000)]
    assert pauses == [0.5, 1, 2, 4, 32, 60, 60]
    assert all(low == 0 for low, _ in bounds)  # full jitter
    assert retries.compute_pause(7, 0, 50) == 25  # half of the time that is left
    assert retries.compute_pause(7, 20, 50) == 35


@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [
        ("7", 7, 7.5),
        ("140", 140, 140.5),
        ("-5", 0, 0.5),
        ("soon", 0, 0.5),
        ("²", 0, 0.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0.5),
    ],
)
def test_retry_after_is_honoured(server, stored, pauses, retry_after, least, most):
    server.script(Fault(status=429, retry_after=retry_after))
    stored.get_size()
    assert len(pauses) == 1
    assert least <= pauses[0] <= most


def test_retries_are_logged_once_a_minute_and_file(server, stored, pauses, caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(retries.time, "monotonic", lambda: now[0])
    (server.folder / "b.bin").write_bytes(b"b")
    with caplog.at_level(logging.WARNING):
        server.script(*[Fault(status=503)] * 3)
        stored.get_size()
        now[0] = 59.0
        server.script(Fault(status=503))
        stored.get_size()
        assert len(caplog.messages) == 1
        server.script(Fault(status=503))
        StoredFile(server.url("b.bin"), QUICK).get_size()
        assert len(caplog.messages) == 2
        now[0] = 61.0
        server.script(Fault(status=429))
        stored.get_size()
    assert len(caplog.messages) == 3
    assert f"{server.host}/data/a.bin: HTTP 503 Service Unavailable; retry 1 of 4" in caplog.text
    assert not any(secret in caplog.text for secret in SECRETS)


def test_every_long_pause_is_shown(server, stored, pauses, caplog):
    server.script(*[Fault(status=503, retry_after="9")] * 3)
    stored.get_size()
    assert len(caplog.messages) == len(pauses) == 3


def test_messages_of_libraries_are_scrubbed():
    error = OSError("for url 'https://u:p@host/a?Signature=x' and url: /b?X-Amz-Signature=y (no)")
    assert failures.explain(error) == "OSError: for url 'https://host/a' and url: /b (no)"


def test_status_is_found_in_the_errors_of_all_libraries():
    class Response:
        status_code = 429
        headers = MappingProxyType({"Retry-After": "3"})

    class Hub(Exception):
        response = Response()

    class Boto(Exception):
        def __init__(self):
            self.response = {"ResponseMetadata": {"HTTPStatusCode": 503}}

    class Gcs(Exception):
        code = 403

    wrapped = OSError("all is lost")
    wrapped.__cause__ = Boto()
    statuses = [failures._find_status(error) for error in (Hub(), Boto(), Gcs(), wrapped)]
    assert statuses == [429, 503, 403, 503]
    assert retries.find_retry_after(Hub()) == 3
    assert failures.is_transient(Hub())
    assert failures.is_transient(wrapped)
    assert not failures.is_transient(Gcs())
    assert failures._find_status(OSError(13, "no")) is None


def test_a_hub_that_cannot_be_reached_is_worth_another_attempt():
    """Whatever HTTP library the Hub's client is built on."""
    with pytest.raises(Exception, match="refused") as raised:
        huggingface_hub.HfApi(endpoint="http://127.0.0.1:9").dataset_info("org/name")
    assert failures.is_transient(raised.value)
    described = failures.describe_permanent(raised.value, "hf://datasets/org/name/a.parquet")
    assert "a.parquet: cannot be read" in str(described)


# --- kinds of servers ---


def test_neither_head_nor_a_length_is_needed(server, stored):
    server.forbids_head = True
    assert (stored.get_size(), stored.can_seek()) == (len(CONTENT), True)
    assert {request.method for request in server.requests} == {"GET"}
    server.hides_length = True
    assert (stored.get_size(), stored.can_seek()) == (len(CONTENT), False)
    assert read(stored) == CONTENT


@pytest.mark.parametrize("hides_length", [False, True])
def test_a_server_without_ranges_is_read_from_the_beginning(server, stored, hides_length):
    server.ignores_ranges, server.hides_length = True, hides_length
    assert stored.get_size() == len(CONTENT)
    assert not stored.can_seek()
    with stored.open() as stream:
        assert stream.read(1000) == CONTENT[:1000]
        assert stream.seek(1_000_000) == 1_000_000
        assert stream.read(10) == CONTENT[1_000_000:1_000_010]
        stream.seek(5)
        assert stream.read(10) == CONTENT[5:15]
        stream.seek(-10, io.SEEK_END)
        assert stream.read() == CONTENT[-10:]
        assert stream.read() == b""
        stream.seek(len(CONTENT) + 10)
        assert stream.read() == b""


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_an_empty_file(server, ignores_ranges):
    server.ignores_ranges = ignores_ranges
    (server.folder / "empty").touch()
    file = StoredFile(server.url("empty"), QUICK)
    assert (file.get_size(), file.can_seek(), read(file)) == (0, True, b"")


def test_a_url_is_sent_to_the_letter_or_quoted(server):
    (server.folder / "a b%.txt").write_bytes(b"here")
    assert read(StoredFile(server.url("a b%25.txt"), QUICK)) == b"here"
    assert read(StoredFile(server.url("a%20b%25.txt?X-Amz-Credential=a%2Fb+c"), QUICK)) == b"here"
    assert server.requests[-1].query == "X-Amz-Credential=a%2Fb+c"


def test_lines(server):
    lines = [b"%d" % number * (number % 50) + b"\n" for number in range(20_000)]
    (server.folder / "lines.txt").write_bytes(b"".join(lines))
    with StoredFile(server.url("lines.txt"), QUICK).open() as stream:
        assert stream.readline() == lines[0]
        assert list(stream) == lines[1:]
    assert len(server.requests) < 8  # requests grow


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_parquet_with_faults(server, pauses, ignores_ranges):
    table = pa.table({"n": range(50_000), "text": [f"text {n} " * 5 for n in range(50_000)]})
    pq.write_table(table, server.folder / "a.parquet", row_group_size=10_000)
    server.ignores_ranges = ignores_ranges
    kinds = [Fault(), Fault(status=503), Fault(), Fault(reset_after=5), Fault(close_after=5)]
    server.script(*kinds * 4)
    file = StoredFile(server.url("a.parquet"), QUICK)
    with file.open() as stream, pq.ParquetFile(stream) as parquet:
        assert parquet.num_row_groups == 5
        assert parquet.read_row_group(3).equals(table.slice(30_000, 10_000))
        assert parquet.read().equals(table)
    assert pauses


_steps = st.lists(
    st.tuples(
        st.sampled_from(["seek", "from_here", "from_end", "read", "readline", "readinto", "peek"]),
        st.integers(0, 700_000),
    ),
    max_size=12,
)


@pytest.mark.parametrize("ignores_ranges", [False, True])
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=_steps)
def test_random_reads_equal_local_ones(server, pauses, ignores_ranges, steps):
    server.ignores_ranges = ignores_ranges
    path = server.folder / "a.bin"
    content = CONTENT[:600_000]
    if not path.exists():
        path.write_bytes(content)
    server.script(Fault(), Fault(), Fault(reset_after=50), Fault(), Fault(close_after=9))
    with StoredFile(server.url("a.bin"), QUICK).open() as remote, open(path, "rb") as local:
        for step, number in steps:
            assert _do(remote, step, number) == _do(local, step, number)
            assert remote.tell() == local.tell()


def _do(stream, step: str, number: int):
    if step == "seek":
        return stream.seek(number)
    if step == "from_here":
        return stream.seek(number // 2, io.SEEK_CUR)
    if step == "from_end":
        return stream.seek(-min(number, 600_000), io.SEEK_END)
    if step == "readinto":
        buffer = bytearray(number)
        return stream.readinto(buffer), buffer
    if step == "peek":
        return stream.peek(1)[:1]
    return getattr(stream, step)(number)


# --- processes, threads, sockets ---


def _read_elsewhere(file: StoredFile) -> tuple[int, bytes]:
    return file.get_size(), read(file)


def test_it_travels_to_spawned_processes(server, stored):
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        assert pool.submit(_read_elsewhere, stored).result() == (len(CONTENT), CONTENT)
        missing = StoredFile(server.url("missing"), QUICK)
        error = pool.submit(_read_elsewhere, missing).exception()
    assert isinstance(error, StorageError)
    assert error.is_permanent


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(StorageError("gone", is_permanent=False)))
    assert (str(error), error.is_permanent) == ("gone", False)


def _count_open_connections() -> int:
    session = get_http_file_system()._session

    async def count() -> int:
        return len(session.connector._acquired)

    return asyncio.run_coroutine_threadsafe(count(), fsspec.asyn.get_loop()).result()


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_threads_and_connections_do_not_pile_up(server, stored, ignores_ranges):
    server.ignores_ranges = ignores_ranges
    read(stored)
    # Those of the server come and go with the connections that are kept.
    names = {t.name for t in threading.enumerate() if "process_request" not in t.name}
    for _ in range(5):
        with stored.open() as stream:
            stream.read(10)
    assert names == {t.name for t in threading.enumerate() if "process_request" not in t.name}
    assert _count_open_connections() == 0
    with pytest.raises(ValueError, match="closed"):
        stream.read(1)


def test_one_session_serves_all_files():
    assert get_http_file_system() is get_http_file_system()


def test_more_streams_than_a_hundred_are_read_side_by_side(server):
    """aiohttp by itself lets the 101st wait for the end of another."""
    server.ignores_ranges = True
    (server.folder / "large").write_bytes(CONTENT)
    file = StoredFile(server.url("large"), Network(0, 20))
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(file.open()) for _ in range(105)]
        assert {stream.read(10) for stream in streams} == {CONTENT[:10]}


READER_WITHOUT_FILES = """
import contextlib, os, resource, sys
from neobert_train.storage.stored_files import Network, StorageError, StoredFile

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
with contextlib.suppress(OSError):
    while True:
        held.append(open(os.devnull))
try:
    StoredFile(sys.argv[1], Network(max_retries=1, timeout_seconds=30)).open()
except StorageError as error:
    print(error)
"""


def test_too_many_open_files_are_no_failure_of_the_network(server, stored):
    reader = [sys.executable, "-c", READER_WITHOUT_FILES, stored.path]
    done = subprocess.run(reader, capture_output=True, text=True, check=True)
    problem = "cannot be read (Too many open files): raise the limit of open files (ulimit"
    assert problem in done.stdout
    assert not any(secret in done.stdout + done.stderr for secret in SECRETS)
    assert server.requests == []
    assert "retry" not in done.stderr


# --- listings ---


def test_what_a_url_is():
    assert all(map(is_url, ["https://host/a", "s3://b/k", "hf://datasets/a/b/c", "memory://a"]))
    assert not any(map(is_url, ["/a/b", "a.txt", "C://a", "data/a://b", "", "~/a"]))


def list_urls(pattern: str, network: Network) -> list[str]:
    return [file.path for file in list_files(pattern, network)]


def test_web_folders_are_listed_by_their_links(server, pauses):
    for name in ("x/1.jsonl", "x/2 2.jsonl", "x/3.txt", "y/1.jsonl", "z/deep/1.jsonl"):
        (server.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (server.folder / name).write_text(name)
    url = server.url("")
    assert list_urls(url + "x/1.jsonl?a=b", QUICK) == [url + "x/1.jsonl?a=b"]
    assert server.requests == []
    server.script(Fault(status=503), Fault(reset_after=5))
    found = list_urls(url + "x/", QUICK)
    assert found == [url + "x/1.jsonl", url + "x/2%202.jsonl", url + "x/3.txt"]
    assert read(StoredFile(found[1], QUICK)) == b"x/2 2.jsonl"
    assert list_urls(url + "x/* *.jsonl", QUICK) == [url + "x/2%202.jsonl"]
    server.script(Fault(), Fault(status=503))  # a folder that fails once is not left out
    assert list_urls(url + "[xy]/1.*", QUICK) == [url + "x/1.jsonl", url + "y/1.jsonl"]
    assert list_urls(url + "*/*.none", QUICK) == []
    with pytest.raises(StorageError, match="no such file"):
        list_urls(url + "missing/*.jsonl", QUICK)
    with pytest.raises(StorageError, match=r"one `\*` a folder"):
        list_urls(url + "**/1.jsonl", QUICK)
