"""metrics.jsonl: whole lines, each step once, whatever the disk does."""

import json
import math

from neobert_train.training.metrics_log import MetricsLog


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_of_later_steps_are_dropped_where_a_run_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    log = MetricsLog(path, 2)
    log.write({"step": 3, "train/loss": math.nan, "train/grad_norm": math.inf, "data/share": 0.5})
    log.close()
    assert read(path) == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "train/loss": None, "train/grad_norm": None, "data/share": 0.5},
    ]


def test_what_a_full_disk_does_not_take_is_written_later(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.write({"step": 1})
    sound = log._file
    log._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    for step in (2, 3):
        log.write({"step": step})
    assert "No space left on device" in caplog.text
    log._file.close()
    log._file = sound
    log.write({"step": 4})
    log.close()
    assert [record["step"] for record in read(path)] == [1, 2, 3, 4]
