"""Compressed files: streams that follow one another are read, and cuts and damage are noticed."""

import bz2
import gzip
import io
import lzma
from dataclasses import replace

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert_train.config.data_schema import DataConfig, SourceKind, TextDocuments
from neobert_train.data.sources import BadRecord, build_units
from neobert_train.data.sources.compression import READ_ERRORS, decompress
from neobert_train.storage.stored_files import StoredFile

PACKERS = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress
}  # fmt: skip
STREAMS = [b"the first stream, ", b"", b"the second and last"]


def unpack(packing: str, packed: bytes) -> bytes:
    with decompress(f"a{packing}", io.BytesIO(packed)) as stream:
        return stream.read()


@pytest.mark.parametrize("packing", PACKERS)
def test_streams_that_follow_one_another_are_one_file(packing):
    """As pbzip2, pigz, pixz and pzstd write, and `cat` makes."""
    packed = [PACKERS[packing](stream) for stream in STREAMS]
    assert unpack(packing, b"".join(packed)) == b"".join(STREAMS)


@pytest.mark.parametrize("packing", PACKERS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_file_cut_off_anywhere_but_between_streams_is_noticed(packing, data):
    packed = [PACKERS[packing](stream) for stream in STREAMS]
    whole = b"".join(packed)
    cut = data.draw(st.integers(1, len(whole) - 1))
    if cut in (len(packed[0]), len(packed[0] + packed[1])):
        assert unpack(packing, whole[:cut]) == STREAMS[0]
    else:
        with pytest.raises(READ_ERRORS):
            unpack(packing, whole[:cut])


@pytest.mark.parametrize("packing", PACKERS)
def test_damage_where_a_later_stream_begins_is_noticed(packing):
    """The readers of Python end there as if the file did."""
    packed = [PACKERS[packing](stream) for stream in STREAMS]
    for garbage in (b"x", b"no stream at all"):
        with pytest.raises(READ_ERRORS):
            unpack(packing, packed[0] + garbage + packed[2][len(garbage) :])


@pytest.mark.parametrize("packing", PACKERS)
def test_padding_with_zeros_is_no_damage(packing):
    packed = PACKERS[packing](STREAMS[0])
    assert unpack(packing, packed + bytes(8)) == STREAMS[0]
    assert unpack(packing, packed + bytes(1 << 18) + packed) == STREAMS[0] * 2


def test_zstandard_frames_of_long_windows_are_read():
    """As dumps of forums are written, by `zstd --long=31`."""
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    writer = compressor.compressobj()  # of unknown size, so that the whole window is asked for
    packed = writer.compress(b"text") + writer.flush()
    assert unpack(".zst", packed) == b"text"


def build(*paths):
    config = DataConfig(source=SourceKind.files, paths=[*paths], text_documents=TextDocuments.line)
    return build_units(config, 1)["corpus"]


@pytest.mark.parametrize("packing", PACKERS)
def test_a_url_with_a_signature_is_unpacked_too(server, packing):
    (server.folder / f"a.txt{packing}").write_bytes(PACKERS[packing](b"one\ntwo\n"))
    (unit,) = build(server.url(f"a.txt{packing}?signature=abc"))
    assert [record.text for record in unit.iter_records(0)] == ["one", "two"]


@pytest.mark.parametrize("packing", [".bz2", ".xz"])
def test_lines_before_a_cut_are_read_and_the_cut_is_named(tmp_path, packing):
    path = tmp_path / f"a.txt{packing}"
    packed = PACKERS[packing](b"one\ntwo\n")
    path.write_bytes(packed + packed)
    (unit,) = build(str(path))
    path.write_bytes(packed + packed[:-6])
    unit = replace(unit, file=StoredFile(str(path)))
    *records, bad = unit.iter_records(0)
    assert [record.text for record in records][:2] == ["one", "two"]
    assert isinstance(bad, BadRecord)
    assert bad.reason.startswith(f"{path}, after document ")
    assert "ends before its end-of-stream marker" in bad.reason
