"""Parquet: row groups divided among units, and damage that stays where it is."""

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neobert_train.data.sources import END_OF_UNIT, BadRecord, Record
from neobert_train.data.sources.parquet import list_parquet_units
from neobert_train.errors import InputError

TYPES = [
    pa.string(),
    pa.large_string(),
    pa.dictionary(pa.int32(), pa.string()),
    pytest.param(
        pa.string_view(),
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parquet")


def read_groups(path, parts: int = 1) -> dict[int, list[Record | BadRecord]]:
    """The records by row group, units in their order."""
    groups: dict[int, list[Record | BadRecord]] = {}
    for unit in list_parquet_units(str(path), "content", parts):
        groups.setdefault(unit.row_group, []).extend(unit.iter_records(0))
    return groups


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
    path = folder / "rows.parquet"
    table = pa.table({"id": range(len(texts)), "content": pa.array(texts).cast(kind)})
    pq.write_table(table, path, row_group_size=rows)
    found = []
    for unit in list_parquet_units(str(path), "content", parts):
        records = list(unit.iter_records(0))
        assert all(isinstance(record, Record) for record in records)
        cursors = [0, *(record.next_cursor for record in records)]
        assert all(a < b for a, b in itertools.pairwise(cursors))
        for index, cursor in enumerate(cursors):
            assert list(unit.iter_records(cursor)) == records[index:]
        found += records
    assert [record.text for record in found] == [text or "" for text in texts]


@pytest.mark.parametrize("parts", [1, 3, 1000])
def test_row_groups_larger_than_one_read_lose_nothing_where_reads_meet(folder, parts):
    path = folder / "large.parquet"
    groups = write_groups(path, num_groups=2, rows=777)
    units = list_parquet_units(str(path), "content", parts)
    sizes = [len(list(unit.iter_records(0))) for unit in units]
    assert len(units) == 2 * min(parts, 777)
    assert max(sizes) - min(sizes) <= 1
    texts = [[record.text for record in group] for group in read_groups(path, parts).values()]
    assert texts == groups
    whole_group, _ = list_parquet_units(str(path), "content", 1)
    for cursor in (255, 256, 257, 776, 777):
        assert [record.text for record in whole_group.iter_records(cursor)] == groups[0][cursor:]


def test_a_null_column_gives_empty_texts_and_empty_row_groups_give_none(folder):
    path = folder / "nulls.parquet"
    schema = pa.schema([("content", pa.null())])
    with pq.ParquetWriter(path, schema) as writer:
        for length in (0, 3, 0):
            writer.write_table(pa.table({"content": pa.nulls(length)}, schema=schema))
    records = [r for u in list_parquet_units(str(path), "content", 2) for r in u.iter_records(0)]
    assert [record.text for record in records] == ["", "", ""]


@pytest.mark.parametrize(
    ("content", "options"),
    [
        pytest.param(b"\xff" * 64, {"compression": "snappy"}, id="compressed bytes"),
        pytest.param(b"x", {"compression": "none", "write_page_checksum": True}, id="one flipped byte"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("parts", [1, 4])
def test_a_damaged_row_group_is_named_and_the_others_are_read(folder, content, options, parts):
    path = folder / "damaged.parquet"
    groups = write_groups(path, num_groups=6, **options)
    offset, size = find_page(path, 2)
    overwrite(path, offset + size // 2, content)
    found = read_groups(path, parts)
    assert sorted(found) == list(range(6))
    for group in set(found) - {2}:
        assert [record.text for record in found[group]] == groups[group]
    bad = [record for record in found[2] if isinstance(record, BadRecord)]
    assert len(bad) == parts
    for record in bad:
        assert record.reason.startswith(f"{path}, row group 2: cannot be read (")
        assert record.next_cursor == END_OF_UNIT


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
    found = read_groups(path)
    for group in {0, 1, 2, 3} - {damaged}:
        assert [record.text for record in found[group]] == groups[group]
    records = found.get(damaged, [])
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
    first, bad, last = read_groups(path)[0]
    assert (first.text, last.text) == ("a", "c")
    assert isinstance(bad, BadRecord)
    assert str(path) in bad.reason
    assert "utf-8" in bad.reason.lower()


def test_a_file_cut_short_or_gone_after_the_start_ends_its_units_with_a_bad_record(folder):
    path = folder / "cut.parquet"
    write_groups(path, num_groups=2)
    units = list_parquet_units(str(path), "content", 1)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    for unit in units:
        (bad,) = unit.iter_records(0)
        assert bad.next_cursor == END_OF_UNIT
    with pytest.raises(InputError, match=r"cut\.parquet cannot be read as parquet: "):
        list_parquet_units(str(path), "content", 1)
    path.unlink()
    (bad,) = units[1].iter_records(7)
    assert bad.reason.startswith(f"{path}, row group 1: cannot be read (")


def test_a_column_is_found_by_its_exact_name_also_beside_names_with_dots(folder):
    path = folder / "dots.parquet"
    pq.write_table(pa.table({"content.raw": ["raw"], "content": ["clean"]}), path)
    for column, expected in [("content", "clean"), ("content.raw", "raw")]:
        (unit,) = list_parquet_units(str(path), column, 1)
        assert [record.text for record in unit.iter_records(0)] == [expected]
