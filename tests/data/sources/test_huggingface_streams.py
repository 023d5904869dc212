"""Streaming with `datasets`, from local files and over HTTP: each row once, resumed by seeking."""

import contextlib
import gzip
import http.server
import itertools
import json
import logging
import random
import re
import threading
import time

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neobert_train.config.data_schema import DataConfig, MixtureSourceConfig, SourceKind
from neobert_train.data.sources import (
    END_OF_UNIT,
    BadRecord,
    Record,
    Unit,
    build_units,
    huggingface,
)
from neobert_train.data.sources.huggingface import DatasetShard, StreamedDataset, StreamedRows
from neobert_train.data.sources.parquet import ParquetRows
from neobert_train.errors import InputError
from neobert_train.storage.stored_files import StorageError
from neobert_train.storage.versions import FileVersion

NUM_ROWS, GROUP_ROWS = 60, 7


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder with Range support, as a dataset host serves them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_HEAD(self):
        self.send_file(with_body=False)

    def do_GET(self):
        self.send_file(with_body=True)

    def send_file(self, with_body: bool):
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file() or self.server.is_broken:
            self.send_error(404)
            return
        content, status = path.read_bytes(), 200
        total, start = len(content), 0
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(wanted[1]), int(wanted[2] or total - 1) + 1
            content, status = content[start:stop], 206
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{total}")
        self.end_headers()
        if with_body:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(content)
                self.server.bytes_sent += len(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), RangeHandler)
    server.folder, server.requests, server.bytes_sent = tmp_path, [], 0
    server.is_broken, server.daemon_threads = False, True
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def make_texts(shard: int) -> list[str]:
    return [f"shard {shard} row {row} é😀" for row in range(NUM_ROWS)]


def write_shard(folder, shard: int, suffix: str) -> str:
    path, texts = folder / f"shard-{shard}.{suffix}", make_texts(shard)
    lines = "".join(json.dumps({"id": i, "content": t}) + "\n" for i, t in enumerate(texts))
    if suffix == "parquet":
        table = pa.table({"id": range(NUM_ROWS), "content": texts})
        pq.write_table(table, path, row_group_size=GROUP_ROWS)
    else:
        path.write_bytes(gzip.compress(lines.encode()) if suffix == "jsonl.gz" else lines.encode())
    return path.name


def build(data_files, loader="parquet", num_lanes=1, **data):
    data = {"source": SourceKind.huggingface, "dataset": loader, "column": "content"} | data
    config = DataConfig(data_files=[str(f) for f in data_files], **data)
    return build_units(config, num_lanes)["corpus"]


def find_problem(*args, **options) -> str:
    with pytest.raises(InputError) as raised:
        build(*args, **options)
    return str(raised.value)


@pytest.mark.parametrize(
    ("loader", "suffix"), [("parquet", "parquet"), ("json", "jsonl"), ("json", "jsonl.gz")]
)
@pytest.mark.parametrize("over_http", [False, True])
@pytest.mark.parametrize("num_lanes", [1, 2, 3, 7])
def test_units_give_each_row_once_for_any_number_of_lanes(
    tmp_path, server, loader, suffix, over_http, num_lanes
):
    names = [write_shard(tmp_path, shard, suffix) for shard in range(2)]
    files = [f"{server.url}/{name}" if over_http else tmp_path / name for name in names]
    units = build(files, loader, num_lanes)
    assert len(units) >= num_lanes
    records = [record for unit in units for record in unit.iter_records(0)]
    assert all(isinstance(record, Record) for record in records), records
    assert sorted(r.text for r in records) == sorted(make_texts(0) + make_texts(1))
    assert bool(server.requests) == over_http


@pytest.mark.parametrize(("loader", "suffix"), [("parquet", "parquet"), ("json", "jsonl")])
@pytest.mark.parametrize("num_lanes", [1, 3])
def test_a_unit_continues_from_any_of_its_cursors(tmp_path, loader, suffix, num_lanes):
    files = [tmp_path / write_shard(tmp_path, 0, suffix)]
    for unit in build(files, loader, num_lanes):
        records = list(unit.iter_records(0))
        cursors = [0, *(record.next_cursor for record in records)]
        assert all(a < b < END_OF_UNIT for a, b in itertools.pairwise(cursors))
        for index in {0, 1, 2, 3, 6, 7, 8, 13, 14, len(records) - 1, len(records)}:
            if index <= len(records):
                assert list(unit.iter_records(cursors[index])) == records[index:]


def test_a_resume_over_http_fetches_the_rest_and_not_what_lies_before(tmp_path, server):
    noise = random.Random(5)
    texts = [noise.randbytes(100_000).hex() for _ in range(120)]
    path = tmp_path / "large.parquet"
    pq.write_table(pa.table({"content": texts}), path, row_group_size=10, compression="none")
    unit = build([f"{server.url}/large.parquet"])[0].divide(1)[0]
    cursors = [record.next_cursor for record in itertools.islice(unit.iter_records(0), 115)]
    server.bytes_sent = 0
    assert [record.text for record in unit.iter_records(cursors[-1])] == texts[115:]
    assert server.bytes_sent < path.stat().st_size / 4


def test_parquet_files_are_read_as_files_and_all_else_is_streamed(tmp_path, caplog):
    """Of a dataset of parquet files `datasets` only says which files belong to the split."""
    names = [tmp_path / write_shard(tmp_path, shard, "parquet") for shard in range(2)]
    units = build(names, num_lanes=3)
    assert {type(unit.format) for unit in units} == {ParquetRows}
    assert {unit.name for unit in units} == {str(name) for name in names}
    with caplog.at_level(logging.WARNING):
        streamed = build([tmp_path / write_shard(tmp_path, 0, "jsonl")], "json")
    assert {type(unit.format) for unit in streamed} == {StreamedRows}
    (record,) = caplog.records
    assert "json is not made of parquet files" in record.getMessage()


def write_splits(folder) -> None:
    for split in ("train", "test"):
        for number in range(2):
            texts = [f"{split} {number} {row}" for row in range(5)]
            path = folder / f"{split}-{number:05d}.parquet"
            pq.write_table(pa.table({"content": texts, "key": range(5)}), path)


def test_the_files_of_a_split_alone_are_read(tmp_path):
    write_splits(tmp_path)
    for split in ("train", "test"):
        units = build([], str(tmp_path), split=split, id_column="key")
        assert {type(unit.format) for unit in units} == {ParquetRows}
        records = [record for unit in units for record in unit.iter_records(0)]
        assert [(record.text, record.id) for record in records] == [
            (f"{split} {number} {row}", str(row)) for number in range(2) for row in range(5)
        ]


def test_files_of_a_glob_are_read_in_the_order_of_their_names(tmp_path):
    write_splits(tmp_path)
    units = build([tmp_path / "*-00001.parquet"])
    assert [unit.name for unit in units if unit.part == 0] == [
        str(tmp_path / f"{split}-00001.parquet") for split in ("test", "train")
    ]


def test_splits_together_are_streamed_and_give_each_row_once(tmp_path, caplog):
    write_splits(tmp_path)
    with caplog.at_level(logging.WARNING):
        units = build([], str(tmp_path), split="train+test")
    assert {type(unit.format) for unit in units} == {StreamedRows}
    assert "`datasets` streams it" in caplog.text
    texts = [record.text for unit in units for record in unit.iter_records(0)]
    assert sorted(texts) == sorted(
        f"{split} {n} {row}" for split in ("train", "test") for n in range(2) for row in range(5)
    )


def test_sources_of_a_mixture_that_are_one_dataset_look_for_its_files_once(tmp_path, monkeypatch):
    write_splits(tmp_path)
    asked = []
    load = datasets.load_dataset_builder
    monkeypatch.setattr(
        datasets, "load_dataset_builder", lambda *args, **rest: asked.append(args) or load(*args, **rest)
    )  # fmt: skip
    config = DataConfig(
        source=SourceKind.huggingface,
        dataset=str(tmp_path),
        column="content",
        mixture={
            "short": MixtureSourceConfig(max_characters=100),
            "long": MixtureSourceConfig(min_characters=101),
        },
    )
    units = build_units(config, 3)
    assert list(units) == ["short", "long"]
    assert units["short"] == units["long"]
    assert asked == [(str(tmp_path),)]


def test_a_host_that_is_gone_after_the_start_is_no_damage_of_a_parquet_file(tmp_path, server):
    """Rows are not passed over for a network that gives out."""
    url = f"{server.url}/{write_shard(tmp_path, 0, 'parquet')}"
    unit = build([url], max_retries=0)[0]
    server.is_broken = True
    with pytest.raises(StorageError, match=r"shard-0\.parquet"):
        list(unit.iter_records(0))


def test_rows_without_the_text_give_an_empty_one(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [{"content": "first"}, {"content": None}, {"id": 3}, {"content": "last"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = [r.text for unit in build([path], "json") for r in unit.iter_records(0)]
    assert texts == ["first", "", "", "last"]


@pytest.mark.parametrize("num_lanes", [1, 2])
def test_rows_of_csv_are_named_by_their_id_and_place(tmp_path, num_lanes):
    path = tmp_path / "a.csv"
    path.write_text('id,content\n7,a\n,"two\nlines"\nx,\n9,é\n')
    units = build([path], "csv", num_lanes, id_column="id")
    records = [(record, unit) for unit in units for record in unit.iter_records(0)]
    records.sort(key=lambda pair: pair[0].begin)
    found = [record for record, _ in records]
    assert [(r.text, r.id) for r in found] == [
        ("a", "7"), ("two\nlines", None), ("", "x"), ("é", "9")
    ]  # fmt: skip
    assert [unit.describe(record.next_cursor) for record, unit in records] == [
        f"csv, shard 0, row group 0, row {row}" for row in (1, 2, 3, 4)
    ]


def test_rows_that_hold_no_text_are_bad_and_name_their_places(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("content\n1\n2\n3\n")
    (unit,) = build([path], "csv")
    records = list(unit.iter_records(0))
    assert [(record.begin, record.next_cursor) for record in records] == [(0, 1), (1, 2), (2, 3)]
    for row, record in enumerate(records, 1):
        assert isinstance(record, BadRecord)
        assert record.is_setting
        assert record.reason == f"{unit.describe(row)}: 'content' holds a number, not text"
    assert list(unit.iter_records(2)) == records[2:]


def test_a_streamed_row_of_a_later_row_group_is_named_by_both(tmp_path):
    """As of parquet files that are not a whole split, such as those of two splits together."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"content": list(range(9))}), path, row_group_size=4)
    source = StreamedDataset("parquet", None, "train", None, (str(path),))
    unit = Unit(DatasetShard(source, 0, 1, FileVersion(None)), StreamedRows("content", None))
    records = list(unit.iter_records(0))
    places = [f"row group {row // 4}, row {row % 4 + 1}" for row in range(9)]
    assert [record.reason for record in records] == [
        f"parquet, shard 0, {place}: 'content' holds a number, not text" for place in places
    ]
    for number, record in enumerate(records, 1):
        assert list(unit.iter_records(record.next_cursor)) == records[number:]


@pytest.mark.parametrize("num_lanes", [1, 3])
def test_damage_after_many_rows_comes_at_its_place_and_again_after_a_resume(tmp_path, num_lanes):
    noise = random.Random(3)
    lines = [json.dumps({"content": noise.randbytes(300).hex()}) for _ in range(40_000)]
    whole = gzip.compress("\n".join(lines).encode(), 1)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(whole)
    units = build([path], "json", num_lanes)
    path.write_bytes(whole[: len(whole) * 4 // 5])
    damages = set()
    for unit in units:
        *records, bad = unit.iter_records(0)
        assert len(records) > 3_000
        assert all(isinstance(record, Record) for record in records)
        assert isinstance(bad, BadRecord)
        assert bad.next_cursor == END_OF_UNIT
        assert records[-1].next_cursor <= bad.begin < len(lines)
        damages.add(bad.begin)
        for record in (records[0], records[-2], records[-1]):
            *rest, again = unit.iter_records(record.next_cursor)
            assert (len(rest), again) == (len(records) - 1 - records.index(record), bad)
    assert len(damages) == 1


def test_a_damaged_shard_ends_in_a_bad_record_and_the_other_shards_are_read(tmp_path):
    names = [write_shard(tmp_path, shard, "jsonl.gz") for shard in range(3)]
    units = build([tmp_path / name for name in names], "json")
    whole = (tmp_path / names[1]).read_bytes()
    (tmp_path / names[1]).write_bytes(whole[: len(whole) // 2])
    before, damaged, after = (list(unit.iter_records(0)) for unit in units)
    assert [record.text for record in before] == make_texts(0)
    assert [record.text for record in after] == make_texts(2)
    last = damaged[-1]
    assert isinstance(last, BadRecord)
    assert last.next_cursor == END_OF_UNIT
    assert re.match(r"json, shard 1: cannot be read \(\w", last.reason)


def test_a_host_that_is_gone_after_the_start_is_no_damage_of_a_streamed_file(
    tmp_path, server, monkeypatch
):
    monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 1)
    monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0)
    (unit,) = build([f"{server.url}/{write_shard(tmp_path, 0, 'jsonl')}"], "json")
    server.is_broken = True
    with pytest.raises(StorageError, match=r"json, shard 0: cannot be read .*continues"):
        list(unit.iter_records(0))


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_a_file_that_vanished_is_no_damage_of_a_streamed_file(tmp_path, suffix):
    name = write_shard(tmp_path, 0, suffix)
    (unit,) = build([tmp_path / name], "json")
    (tmp_path / name).unlink()
    with pytest.raises(StorageError, match="shard 0: cannot be read"):
        list(unit.iter_records(0))


def test_a_missing_column_is_named_with_those_that_exist(tmp_path):
    path = tmp_path / write_shard(tmp_path, 0, "jsonl")
    for key in ("column", "id_column"):
        assert find_problem([path], "json", **{key: "text"}) == (
            f"the dataset 'json' has no column 'text': write data.{key}=... with one of id, content"
        )
    parquet = tmp_path / write_shard(tmp_path, 0, "parquet")
    assert find_problem([parquet], column="text") == (
        f"{parquet} has no column 'text': write data.column=... with one of id, content"
    )


def test_a_dataset_that_cannot_be_opened_is_named_with_the_reason(tmp_path, server):
    sound = tmp_path / write_shard(tmp_path, 0, "parquet")
    nowhere = str(tmp_path / "nowhere")
    cases = [
        (([tmp_path / "gone.parquet"],), {}, "the dataset 'parquet'", "gone.parquet"),
        (([f"{server.url}/gone.parquet"],), {}, "the dataset 'parquet'", "gone.parquet"),
        (([sound],), {"split": "dev"}, "split 'dev'", "Available splits: ['train']"),
        (([], nowhere), {}, f"the dataset '{nowhere}'", nowhere),
    ]
    for args, options, name, reason in cases:
        message = find_problem(*args, **options)
        assert name in message
        assert "cannot be opened: " in message
        assert reason in message.split("cannot be opened: ")[1]
        assert "\n" not in message


def test_the_files_of_a_streamed_dataset_are_known_when_it_is_read_again(tmp_path, server):
    names = [write_shard(tmp_path, shard, "jsonl") for shard in range(3)]

    def find_version(*files):
        (version,) = {unit.file.version for unit in build(files, "json")}
        return version

    urls = [f"{server.url}/{name}" for name in names]
    local, remote = find_version(*(tmp_path / name for name in names)), find_version(*urls)
    assert local.size == remote.size == sum((tmp_path / name).stat().st_size for name in names)
    content = (tmp_path / names[1]).read_bytes()
    (tmp_path / names[1]).write_bytes(content.replace(b"row 7", b"Row 7"))
    changed = find_version(*(tmp_path / name for name in names))
    assert local.find_change(changed).startswith("hash of all files ")
    (tmp_path / names[1]).write_bytes(content[:-50])
    assert "bytes instead of" in remote.find_change(find_version(*urls))


def test_a_dataset_that_gives_no_answer_is_shown_and_given_up_in_time(monkeypatch, caplog):
    released = threading.Event()
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: released.wait())
    monkeypatch.setattr(huggingface, "_SHOWN_AFTER_SECONDS", 0.1)
    begun = time.monotonic()
    message = find_problem([], "org/name", timeout_seconds=0.2, max_retries=1)
    assert time.monotonic() - begun < 5
    assert "cannot be opened: nothing came in 0.4 seconds, data.timeout_seconds times" in message
    assert caplog.messages == ["waiting for the dataset org/name"]
    released.set()


def test_a_dataset_without_rows_says_so(tmp_path):
    path = tmp_path / "a.jsonl"
    path.touch()
    message = find_problem([path], "json")
    assert re.search("empty|no rows|no documents", message)


def test_a_text_inside_an_object_is_found_by_its_path(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"translation": {"en": f"text {n}", "de": "x"}, "meta": {"id": n}} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"translation": None}]))
    (unit,) = build([path], "json", column="translation.en", id_column="meta.id")
    records = list(unit.iter_records(0))
    assert [record.text for record in records] == ["text 0", "text 1", "text 2", ""]
    assert [record.id for record in records] == ["0", "1", "2", None]
    assert find_problem([path], "json", column="translation.fr") == (
        "the dataset 'json' has no column 'translation.fr': write data.column=... with one of "
        "translation.en, translation.de, meta.id"
    )
