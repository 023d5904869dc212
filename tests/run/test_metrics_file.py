"""metrics.jsonl: only a line that was cut off is left out; other damage is named, with its line."""

import json
import os

import pytest

from neobert_train.errors import InputError
from neobert_train.run.metrics_file import find_latest, read_metrics

GOOD = "".join(json.dumps({"step": step, "train/loss": 1 / step}) + "\n" for step in range(1, 6))


TORN = ["", '{"step": 6, "tra', "\0" * 5000, '{"step": 6, "a": "\xff']


@pytest.mark.parametrize("torn", TORN, ids=["nothing", "half", "zeros", "latin-1"])
def test_a_last_line_that_was_cut_off_is_left_out(tmp_path, torn):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(GOOD.encode() + torn.encode("latin-1"))
    assert [record["step"] for record in read_metrics(file)] == [1, 2, 3, 4, 5]


def test_a_last_line_that_only_lacks_its_end_is_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(GOOD + '{"step": 6, "eval/loss": null}')
    assert list(read_metrics(tmp_path / "metrics.jsonl"))[-1] == {"step": 6, "eval/loss": None}


def test_step_0_is_that_of_the_untrained_network(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "probe/party": 0.5}\n' + GOOD)
    assert next(read_metrics(tmp_path / "metrics.jsonl")) == {"step": 0, "probe/party": 0.5}


DAMAGES = {
    "cut off": (b'{"step": 3, "tra', "not JSON"),
    "zeros": (b"\0\0\0", "not JSON"),
    "empty": (b"", "not JSON"),
    "list": (b"[]", "no JSON object"),
    "number": (b"3", "no JSON object"),
    "no step": (b"{}", "its step must be a whole number, 0 or above"),
    "negative step": (b'{"step": -5}', "its step must be"),
    "half a step": (b'{"step": 2.5}', "its step must be"),
    "true step": (b'{"step": true}', "its step must be"),
    "step in quotes": (b'{"step": "3"}', "its step must be"),
    "step again": (b'{"step": 2}', "its step 2 comes after step 2"),
    "nan": (b'{"step": 3, "train/loss": NaN}', "train/loss must be a finite number or null"),
    "text": (b'{"step": 3, "train/loss": "low"}', "train/loss must be a finite number or null"),
    "huge": (b'{"step": 3, "train/loss": 1' + b"0" * 400 + b"}", "train/loss must be a finite"),
    "latin-1": (b'{"step": 3, "a": "\xff"}', "not UTF-8"),
    "deep": (b"[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_any_other_damage_is_named_with_its_line(tmp_path, damage, is_last):
    line, words = DAMAGES[damage]
    lines = GOOD.encode().splitlines()[: 3 if is_last else 5]
    lines[2] = line
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(InputError, match=f"line 3 is damaged .*{words}.*: restore the file"):
        list(read_metrics(file))


@pytest.mark.timeout(10)
def test_a_pipe_or_folder_in_its_place_is_named(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(InputError, match=r"cannot be read .it is not a regular file.: restore it"):
        list(read_metrics(tmp_path / "metrics.jsonl"))
    assert list(read_metrics(tmp_path / "none.jsonl")) == []


def test_the_latest_value_counts_also_where_it_was_not_finite():
    records = [{"step": 1, "eval/loss": 2.0, "train/loss": 3.0}, {"step": 2, "eval/loss": None}]
    assert find_latest(records) == {"step": 2, "eval/loss": None, "train/loss": 3.0}
    assert find_latest(records, 1)["eval/loss"] == 2.0
