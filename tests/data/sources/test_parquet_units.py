"""Parquet: row groups divided among units, and damage that stays where it is."""

import errno
import itertools
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neobert_train.data.sources import END_OF_UNIT, BadRecord, Record, Unit
from neobert_train.data.sources import parquet as parquet_module
from neobert_train.data.sources.parquet import ParquetRows
from neobert_train.errors import InputError
from neobert_train.storage import failures
from neobert_train.storage.stored_files import StorageError, StoredFile

TYPES = [
    pa.string(),
    pa.large_string(),
    pa.dictionary(pa.int32(), pa.string()),
    pytest.param(
        pa.string_view(),
    ),
]


numbers = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parquet")


def list_units(path, parts: int = 1, column: str = "content", id_column=None):
    return Unit(StoredFile(str(path)), ParquetRows(column, id_column)).divide(parts)


def read_all(path, parts: int = 1, **options) -> list[Record | BadRecord]:
    """The records of a file, units in their order."""
    return [
        record for unit in list_units(path, parts, **options) for record in unit.iter_records(0)
    ]


def join(groups: list[list[str]]) -> list[str]:
    return list(itertools.chain.from_iterable(groups))


def write_groups(path, num_groups: int, rows: int = 40, **options) -> list[list[str]]:
    """Row groups of texts that compression leaves large."""
    texts = [f"row {n} é " + f"{n * 7919 + 1:x}" * 9 for n in range(num_groups * rows)]
    table = pa.table({"id": range(len(texts)), "content": texts})
    pq.write_table(table, path, row_group_size=rows, use_dictionary=False, **options)
    return [texts[start : start + rows] for start in range(0, len(texts), rows)]


def find_page(path, group: int) -> tuple[int, int]:
    """Where the texts of a row group lie in the file: offset and bytes."""
    column = pq.read_metadata(path).row_group(group).column(1)
    return column.data_page_offset, column.total_compressed_size


def overwrite(path, offset: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


@pytest.mark.parametrize("kind", TYPES, ids=str)
@settings(deadline=None, max_examples=40)
@given(
    texts=st.lists(st.none() | st.text("a\n\r é中😀", max_size=8), min_size=1, max_size=30),
    rows=st.integers(1, 12),
    parts=st.integers(1, 40),
)
def test_units_give_each_row_once_and_continue_from_any_row(folder, kind, texts, rows, parts):
    path = folder / f"rows-{next(numbers)}.parquet"  # a kept row group is known by its file
    table = pa.table({"id": range(len(texts)), "content": pa.array(texts).cast(kind)})
    pq.write_table(table, path, row_group_size=rows)
    found = []
    division = list_units(path)[0].find_division()
    for part, unit in enumerate(list_units(path, parts)):
        records = list(unit.iter_records(0))
        assert all(isinstance(record, Record) for record in records)
        begins = division.select(np.arange(len(texts)), part, parts)
        assert [record.begin for record in records] == begins.tolist()
        cursors = [0, *(record.next_cursor for record in records)]
        assert all(a < b for a, b in itertools.pairwise(cursors))
        for index, cursor in enumerate(cursors):
            assert list(unit.iter_records(cursor)) == records[index:]
        found += records
    assert [record.text for record in found] == [text or "" for text in texts]


@pytest.mark.parametrize("parts", [1, 2, 3, 1000])
def test_row_groups_larger_than_one_read_lose_nothing_where_reads_meet(folder, parts):
    path = folder / f"large-{parts}.parquet"  # a kept row group is known by its file
    groups = write_groups(path, num_groups=2, rows=777)
    sizes = [len(list(unit.iter_records(0))) for unit in list_units(path, parts)]
    assert max(sizes) - min(sizes) <= 1
    assert [record.text for record in read_all(path, parts)] == groups[0] + groups[1]
    first = list_units(path, 2)[0]
    for cursor in (255, 256, 257, 776, 777):
        assert [record.text for record in first.iter_records(cursor)] == groups[0][cursor:]


@pytest.mark.parametrize("num_groups", [1, 3, 7, 8, 40])
def test_parts_are_whole_row_groups_where_there_are_enough(folder, num_groups):
    path = folder / f"groups-{num_groups}.parquet"
    groups = write_groups(path, num_groups, rows=5)
    units = [[record.text for record in unit.iter_records(0)] for unit in list_units(path, 7)]
    assert join(units) == join(groups)
    if num_groups >= 7:
        bounds = {group[0] for group in groups}
        assert all(unit and unit[0] in bounds for unit in units)
    sizes = [len(unit) for unit in units]
    assert max(sizes) - min(sizes) <= (1 if num_groups < 7 else 5)


@pytest.mark.parametrize(("num_groups", "parts"), [(1, 2), (1, 50), (3, 50)])
def test_a_row_group_that_many_units_divide_is_decoded_once(folder, monkeypatch, num_groups, parts):
    path = folder / f"divided-{num_groups}-{parts}.parquet"
    write_groups(path, num_groups, rows=600)
    decoded = []
    read = pq.ParquetFile.read_row_group

    def count(self, group, **options):
        decoded.append(group)
        return read(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", count)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)  # the way of those that stand alone
    assert len(read_all(path, parts)) == num_groups * 600
    assert decoded == list(range(num_groups))


def test_units_that_are_read_side_by_side_do_not_each_hold_their_row_group(folder):
    """Dozens are open in a worker; a row group may have 256 MiB."""
    units = []
    for number in range(8):
        path = folder / f"side-by-side-{number}.parquet"
        texts = [f"{number} {row} " * 200 for row in range(2000)]
        pq.write_table(pa.table({"content": texts}), path)
        units += list_units(path, parts=8)
    size = pq.read_metadata(path).row_group(0).total_byte_size
    before = pa.total_allocated_bytes()
    records = [unit.iter_records(0) for unit in units[::4]]
    for unit in records:
        next(unit)
    held = pa.total_allocated_bytes() - before
    kept = parquet_module._KEPT_GROUPS * size
    assert held < 1.5 * (kept + len(records) * size / 8) < 8 * size


@pytest.mark.parametrize("parts", [1, 3])
def test_a_row_group_too_large_to_keep_is_streamed_by_every_unit(folder, monkeypatch, parts):
    monkeypatch.setattr(parquet_module, "_MOST_KEPT_BYTES", 1000)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", None)
    path = folder / f"streamed-{parts}.parquet"
    groups = write_groups(path, num_groups=1, rows=600)
    assert [record.text for record in read_all(path, parts)] == groups[0]


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_a_document_is_named_by_its_id_column_and_its_row(folder, parts):
    path = folder / f"ids-{parts}.parquet"
    write_groups(path, num_groups=3, rows=4)
    units = list_units(path, parts, id_column="id")
    records = [(unit, record) for unit in units for record in unit.iter_records(0)]
    assert [record.id for _, record in records] == [str(number) for number in range(12)]
    assert [record.begin for _, record in records] == list(range(12))
    assert [unit.describe(record.next_cursor) for unit, record in records] == [
        f"{path}, row {row}" for row in range(1, 13)
    ]
    for unit in units:
        found = list(unit.iter_records(0))
        for place, record in enumerate(found):
            assert list(unit.iter_records(record.next_cursor)) == found[place + 1 :]
    assert {record.id for record in read_all(path, parts)} == {None}


@pytest.mark.parametrize("parts", [1, 3])
def test_an_id_may_be_null_or_the_text_itself(folder, parts):
    path = folder / f"null-ids-{parts}.parquet"
    table = pa.table({"content": ["a", "b", "c"], "key": pa.array([None, "x", None])})
    pq.write_table(table, path)
    assert [record.id for record in read_all(path, parts, id_column="key")] == [None, "x", None]
    same = read_all(path, parts, id_column="content")
    assert [(record.text, record.id) for record in same] == [("a", "a"), ("b", "b"), ("c", "c")]


def test_a_missing_id_column_is_an_error_at_the_start_and_a_bad_record_later(folder):
    path = folder / "no-ids.parquet"
    write_groups(path, num_groups=1)
    mend = f"{path} has no column 'key': write data.id_column=... with one of id, content"
    with pytest.raises(InputError) as error:
        ParquetRows("content", "key").check(StoredFile(str(path)), 0)
    assert str(error.value) == mend
    (bad,) = list_units(path, 1, id_column="key")[0].iter_records(0)
    assert (bad.reason, bad.is_setting, bad.next_cursor) == (mend, True, END_OF_UNIT)


@pytest.mark.parametrize("column", ["text", "id"])
def test_a_later_file_without_the_column_is_a_bad_record_that_names_the_setting(folder, column):
    path = folder / "columns.parquet"
    write_groups(path, num_groups=1)
    (bad,) = list_units(path, column=column)[0].iter_records(0)
    assert bad.is_setting
    assert bad.next_cursor == END_OF_UNIT
    assert "write data.column=... with one of" in bad.reason


def test_a_null_column_gives_empty_texts_and_empty_row_groups_give_none(folder):
    path = folder / "nulls.parquet"
    schema = pa.schema([("content", pa.null())])
    with pq.ParquetWriter(path, schema) as writer:
        for length in (0, 3, 0):
            writer.write_table(pa.table({"content": pa.nulls(length)}, schema=schema))
    records = read_all(path, parts=2)
    assert [record.text for record in records] == ["", "", ""]


@pytest.mark.parametrize(
    ("content", "options"),
    [
        pytest.param(b"\xff" * 64, {"compression": "snappy"}, id="compressed bytes"),
        pytest.param(b"x", {"compression": "none", "write_page_checksum": True}, id="one flipped byte"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("parts", [1, 4, 24])
def test_a_damaged_row_group_is_named_and_the_others_are_read(folder, content, options, parts):
    path = folder / f"damaged-{parts}-{len(content)}.parquet"
    groups = write_groups(path, num_groups=6, **options)
    offset, size = find_page(path, 2)
    overwrite(path, offset + size // 2, content)
    records = read_all(path, parts)
    texts = [record.text for record in records if isinstance(record, Record)]
    assert texts == join(groups[:2] + groups[3:])
    bad = [record for record in records if isinstance(record, BadRecord)]
    assert len(bad) == max(1, parts // 6)  # of every unit that reads from it
    for record in bad:
        assert record.reason.startswith(f"{path}, row group 2: cannot be read (")
        assert record.next_cursor <= 120, "the unit goes on after it"
    for unit in list_units(path, parts):
        for index, record in enumerate(found := list(unit.iter_records(0))):
            assert list(unit.iter_records(record.next_cursor)) == found[index + 1 :]


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_resume_loses_the_same_rows_to_damage_inside_a_row_group(folder, parts):
    """A run that goes on must see what it would have seen had it not stopped."""
    path = folder / f"pages-{parts}.parquet"
    options = {"data_page_size": 4096, "write_batch_size": 64, "write_page_checksum": True}
    groups = write_groups(path, num_groups=2, rows=1000, compression="none", **options)
    offset, size = find_page(path, 0)
    overwrite(path, offset + size * 3 // 4, b"\xff")
    unit = list_units(path, parts)[0]
    records = list(unit.iter_records(0))
    [kept] = [place for place, record in enumerate(records) if isinstance(record, BadRecord)]
    assert [record.text for record in records[:kept]] == groups[0][:kept]
    assert records[kept].begin == kept
    # The rows before the damage are read where the unit has the row group for itself.
    assert kept >= 500 if parts < 3 else kept == 0
    cursors = [record.next_cursor for record in records]
    assert all(a < b for a, b in itertools.pairwise(cursors))
    for place in {0, 99, 255, 256, kept - 1, kept, len(records) - 1} & set(range(len(records))):
        assert list(unit.iter_records(cursors[place])) == records[place + 1 :]


@settings(deadline=None, max_examples=60)
@given(
    compression=st.sampled_from(["none", "snappy", "zstd", "gzip"]),
    damaged=st.integers(0, 3),
    place=st.integers(0, 4000),
    content=st.binary(min_size=1, max_size=64),
)
@example("none", 0, 0, b"\x01")  # a page of a kind that readers pass over
def test_bytes_overwritten_in_a_row_group_are_noticed_and_harm_no_other(
    folder, compression, damaged, place, content
):
    path = folder / "noise.parquet"
    groups = write_groups(path, num_groups=4, compression=compression, write_page_checksum=True)
    offset, size = find_page(path, damaged)
    place %= size
    overwrite(path, offset + place, content[: size - place])
    found = read_all(path)
    before, after = join(groups[:damaged]), join(groups[damaged + 1 :])
    assert [record.text for record in found[: len(before)]] == before
    assert [record.text for record in found[len(found) - len(after) :]] == after
    records = found[len(before) : len(found) - len(after)]
    texts = [record.text for record in records if isinstance(record, Record)]
    if place >= 100:  # beyond the header of the page, which has no checksum
        assert texts == groups[damaged][: len(texts)]
    if len(texts) < len(groups[damaged]):
        (bad,) = records[len(texts) :]
        assert bad.reason.startswith(f"{path}, row group {damaged}: ")
    else:
        assert records == records[: len(groups[damaged])]


def test_a_row_that_is_not_utf8_is_one_bad_record_and_the_rest_is_read(folder):
    path = folder / "latin.parquet"
    ends = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 2, 3)))
    texts = pa.StringArray.from_buffers(3, ends, pa.py_buffer(b"a\xe9c"))
    pq.write_table(pa.table({"content": texts}), path)
    first, bad, last = read_all(path)
    assert (first.text, last.text) == ("a", "c")
    assert isinstance(bad, BadRecord)
    assert str(path) in bad.reason
    assert "utf-8" in bad.reason.lower()


def test_a_file_cut_short_ends_its_units_with_a_bad_record(folder):
    path = folder / "cut.parquet"
    write_groups(path, num_groups=2)
    units = list_units(path, 2)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    for unit in units:
        (bad,) = unit.iter_records(0)
        assert bad.next_cursor == END_OF_UNIT
    with pytest.raises(InputError, match=r"cut\.parquet cannot be read as parquet: "):
        ParquetRows("content").check(StoredFile(str(path)), 0)


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EIO, os.strerror(errno.EIO)), "Input/output error"),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), "mount its network file system again"),
        (MemoryError(), r"data\.num_workers"),
    ],
)
def test_an_error_of_the_system_is_no_damage_wherever_it_comes(
    folder, monkeypatch, error, words, parts
):
    monkeypatch.setattr(failures, "_LEAST_MEMORY_BYTES", 1 << 60)  # there is less
    path, pread = folder / "system.parquet", os.pread
    write_groups(path, num_groups=2, rows=3000)
    for num_reads in itertools.count():
        calls = itertools.count()

        def fail_later(*arguments):
            if next(calls) >= num_reads:  # noqa: B023
                raise error
            return pread(*arguments)

        parquet_module._read_row_group.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", fail_later)
            unit = list_units(path, parts)[0]
            failure = find_failure(unit)
        if failure is None:
            break
        assert re.search(words, failure)
    assert num_reads >= 3  # the sample, the footer, the row group


def find_failure(unit: Unit) -> str | None:
    """What ends the reading of a unit, no record of which is bad."""
    try:
        assert all(isinstance(record, Record) for record in unit.iter_records(0))
    except StorageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("parts", [1, 5])
def test_memory_that_runs_out_in_the_reader_is_no_damage_where_little_is_left(
    folder, monkeypatch, parts
):
    path = folder / "memory.parquet"
    write_groups(path, num_groups=2)

    def fail(*_, **__):
        raise pa.ArrowMemoryError("malloc of size 9 failed")

    parquet_module._read_row_group.cache_clear()
    for method in ("iter_batches", "read_row_group"):
        monkeypatch.setattr(pq.ParquetFile, method, fail)
    # Of a machine that has enough, a damaged length has asked for too much.
    monkeypatch.setattr(failures, "_LEAST_MEMORY_BYTES", 0)
    assert all(
        isinstance(record, BadRecord) for record in list_units(path, parts)[0].iter_records(0)
    )
    monkeypatch.setattr(failures, "_LEAST_MEMORY_BYTES", 1 << 60)
    with pytest.raises(StorageError, match=r"memory\.parquet: cannot be read .*data\.num_workers"):
        list(list_units(path, parts)[0].iter_records(0))


def test_a_column_is_found_by_its_exact_name_also_beside_names_with_dots(folder):
    path = folder / "dots.parquet"
    pq.write_table(pa.table({"content.raw": ["raw"], "content": ["clean"]}), path)
    for column, expected in [("content", "clean"), ("content.raw", "raw")]:
        assert [record.text for record in read_all(path, column=column)] == [expected]


@pytest.mark.parametrize("parts", [1, 3])
def test_a_text_inside_a_struct_is_found_by_its_path(folder, parts):
    path = folder / f"structs-{parts}.parquet"
    texts = [
        {"en": "one", "de": "eins"},
        None,
        {"en": None, "de": "drei"},
        {"en": "four", "de": ""},
    ]
    table = pa.table(
        {
            "text": texts,
            "text.de": ["own"] * 4,
            "meta": [{"source": {"name": f"file {n}", "n": n}} for n in range(4)],
        }
    )
    pq.write_table(table, path)
    options = {"parts": parts, "id_column": "meta.source.n"}
    records = read_all(path, column="text.en", **options)
    assert [record.text for record in records] == ["one", "", "", "four"]
    assert [record.id for record in records] == ["0", "1", "2", "3"]
    for column, expected in [("text.de", "own"), ("meta.source.name", "file 0")]:
        assert read_all(path, column=column, **options)[0].text == expected
    for column, names in [
        (
            "text.fr",
            "no column 'text.fr': write data.column=... with one of text.en, text.de, text.de",
        ),
        ("text", "with one of text.en, text.de, text.de, meta.source.name"),
        ("meta.source.n", "column 'meta.source.n' holds int64, not text"),
    ]:
        with pytest.raises(InputError, match=names):
            ParquetRows(column).check(StoredFile(str(path)), 0)


def test_columns_of_one_name_are_an_error_only_where_they_are_read(folder):
    path = folder / "twice.parquet"
    arrays = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"]), pa.array([1])]
    pq.write_table(pa.table(arrays, names=["content", "content", "text", "id"]), path)
    mend = (
        f"{path} has 2 columns 'content': write data.column=... with one of content, content, text"
    )
    with pytest.raises(InputError, match=mend):
        ParquetRows("content").check(StoredFile(str(path)), 0)
    (bad,) = read_all(path)
    assert bad.is_setting
    assert bad.reason.startswith(mend)
    assert [(r.text, r.id) for r in read_all(path, column="text", id_column="id")] == [("c", "1")]


def test_a_column_name_that_is_not_utf8_is_an_error_that_names_the_file(folder):
    path = folder / "name.parquet"
    pq.write_table(pa.table({"content": ["a"], "latin": ["b"]}), path)
    path.write_bytes(path.read_bytes().replace(b"latin", b"lat\xedn"))
    for read in (
        ParquetRows("content").find_division,
        lambda f: ParquetRows("content").check(f, 0),
    ):
        with pytest.raises(InputError, match=r"name\.parquet cannot be read as parquet: 'utf-8'"):
            read(StoredFile(str(path)))
    (bad,) = read_all(path)
    assert bad.next_cursor == END_OF_UNIT
    assert bad.reason.startswith(f"{path}: cannot be read ('utf-8'")
