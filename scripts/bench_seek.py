"""Time to go on at 1 % and at 99 % of a source, and memory of a lane over millions of documents.

    python scripts/bench_seek.py              # a million documents in local parquet files
    python scripts/bench_seek.py --memory     # then also two million documents through a lane

Every seek is measured in a fresh process: from a lane's state to its next batch, tokenizer loaded.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from neobert_train.config.schema import TrainConfig
from neobert_train.config.store import compose_config, to_typed
from neobert_train.config.typed import parse
from neobert_train.data.corpus import open_corpus
from neobert_train.data.lane.lane import Lane, LaneState
from neobert_train.data.lane.order import LaneOrder, Position, WindowStart, iter_windows
from neobert_train.data.lane.streams import StreamState
from neobert_train.data.sources import EMBEDDED_TEXTS
from neobert_train.tokenizers.loading import build_tokenizer

NUM_LANES = 4


def write_documents(folder: Path, num_documents: int, group_rows: int, num_files: int) -> None:
    """Return documents of some 60 words of the shipped texts."""
    words = " ".join(pq.read_table(EMBEDDED_TEXTS)["content"].to_pylist()).split()
    generator = np.random.default_rng(0)
    folder.mkdir()
    for number in range(num_files):
        starts = generator.integers(len(words) - 100, size=num_documents // num_files)
        lengths = generator.integers(20, 100, size=len(starts))
        texts = [" ".join(words[a : a + n]) for a, n in zip(starts, lengths, strict=True)]
        pq.write_table(
            pa.table({"text": texts}), folder / f"{number}.parquet", row_group_size=group_rows
        )


def make_config(folder: Path) -> TrainConfig:
    config = to_typed(
        "train",
        compose_config(
            "train",
            ["data=files", f"data.paths=[{folder}]", "batch.micro_batch_tokens=16384",
             f"batch.global_batch_tokens={NUM_LANES * 16384}"],
        ),
    )  # fmt: skip
    assert isinstance(config, TrainConfig)
    return config


def find_state(config: TrainConfig, share: float) -> LaneState:
    """Return the state of lane 0 after a share of its records of the first epoch."""
    units = open_corpus(config, build_tokenizer(config.tokenizer))["corpus"]
    data = config.data
    order = LaneOrder(units, 0, NUM_LANES, config.seed, data.shuffle_window, data.shuffle_units,
                      "corpus", max_epochs=1)  # fmt: skip
    starts = [window.start for window in iter_windows(order, WindowStart())]
    position = Position(starts[int(share * len(starts))], data.shuffle_window // 2)
    return LaneState(1000, (0.0,), (), {"corpus": StreamState(position)})


def measure_seek(folder: str, state: str) -> None:
    """In a process of its own: prints the seconds."""
    config = make_config(Path(folder))
    tokenizer = build_tokenizer(config.tokenizer)
    started = time.perf_counter()
    lane = Lane(config, open_corpus(config, tokenizer), tokenizer, 0)
    next(lane.iter_batches(parse(LaneState, json.loads(state))))
    print(time.perf_counter() - started)


def measure_memory(folder: Path, num_documents: int) -> None:
    config = make_config(folder)
    tokenizer = build_tokenizer(config.tokenizer)
    batches = Lane(config, open_corpus(config, tokenizer), tokenizer, 0).iter_batches(LaneState())
    marks = [num_documents * tenth // 10 for tenth in range(1, 11)]
    for batch in batches:
        if batch.lane_state["streams"]["corpus"]["counts"][0] >= marks[0]:
            lines = Path("/proc/self/status").read_text().splitlines()
            kibibytes = int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))
            print(f"  after {marks.pop(0):,} documents {kibibytes / 1024:,.0f} MiB", flush=True)
            if not marks:
                return


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        measure_seek(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        layouts = {
            "one file, one row group": (1 << 40, 1),
            "8 files, row groups of 1,000": (1000, 8),
        }
        for number, (name, (group_rows, num_files)) in enumerate(layouts.items()):
            folder = Path(temporary) / str(number)
            write_documents(folder, arguments.documents, group_rows, num_files)
            config = make_config(folder)
            seconds = {}
            for share in (0.01, 0.99):
                state = json.dumps(find_state(config, share).to_dict())
                command = [sys.executable, __file__, "--one", str(folder), state]
                runs = [float(subprocess.check_output(command)) for _ in range(3)]
                seconds[share] = sorted(runs)[1]
            print(f"{arguments.documents:,} documents, {name}: {seconds[0.01]:.2f} s at 1 %, "
                  f"{seconds[0.99]:.2f} s at 99 %, ratio {seconds[0.99] / seconds[0.01]:.2f}")  # fmt: skip
        if arguments.memory:
            print("memory of a process that reads, tokenises and packs one lane:")
            measure_memory(folder, 2 * arguments.documents)


if __name__ == "__main__":
    main()
