"""The real order of documents at the size of RefinedWeb, on simulated ranks and files.

    python scripts/simulate_scale.py                 # 5,534 files, 968 million rows: some minutes
    python scripts/simulate_scale.py --rows 9680000  # a hundredth of it: seconds

Nothing is read from a disk: a file is an index of rows. What deals them to lanes, shuffles, mixes,
packs and resumes is the code that training uses.

1. A whole epoch over 1,024 lanes, every lane stopped 20 times at a random document, its position
   written as JSON and taken up again. Every row must come exactly once.
2. A mixture of two sources through whole lanes: the run stops 20 times, each time on another number
   of ranks, and must give the micro-batches of a run that never stopped.
"""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neobert_train.config.data_schema import DataConfig, MixtureSourceConfig
from neobert_train.config.schema import BatchConfig, TrainConfig
from neobert_train.config.typed import parse
from neobert_train.data.lane.lane import Lane, LaneState, initial_states
from neobert_train.data.lane.order import LaneOrder, Position, iter_windows
from neobert_train.data.sources import Division, TokenizedRecord, Unit, divide_files
from neobert_train.data.sources.source import STRETCHES_PER_LANE
from neobert_train.tokenizers.loading import build_tokenizer
from neobert_train.world import World

NUM_FILES, NUM_ROWS, NUM_LANES = 5534, 968_000_015, 1024
STOPS = 20
WORLD_SIZES = (1024, 512, 128, 1, 16, 256, 8, 1024, 64, 2)
SHUFFLE = {"shuffle_window": 1024, "shuffle_units": 4}


class Row(int):
    """A record that is nothing but its number in the whole source, plus its place in the file."""

    @property
    def next_cursor(self) -> int:
        return int(self) + 1


@dataclass(frozen=True)
class SimulatedFile:
    """Rows [first, last) of the source."""

    first: int
    last: int


@dataclass(frozen=True)
class SimulatedRows:
    """Rows that are nothing but numbers; cursors count in the whole source."""

    units_per_lane = STRETCHES_PER_LANE

    def find_rows(self, unit: Unit, cursor: int) -> range:
        first, last = unit.file.first, unit.file.last
        start, stop = Division((last - first,)).find_range(unit.part, unit.parts)
        return range(max(first + start, cursor), first + stop)

    def iter_records(self, unit: Unit, cursor: int) -> Iterator[Row]:
        return map(Row, self.find_rows(unit, cursor))


@dataclass(frozen=True)
class SimulatedTexts(SimulatedRows):
    """The same rows as documents of lognormal lengths."""

    lengths: tuple[int, ...] = (300,)

    def iter_records(self, unit: Unit, cursor: int) -> Iterator[TokenizedRecord]:
        ids = np.full(max(self.lengths), 2000, dtype=np.uint16)
        for row in self.find_rows(unit, cursor):
            length = self.lengths[row * 7919 % len(self.lengths)]
            yield TokenizedRecord(ids[:length], length, False, 2**64 - 1, row + 1)


def make_files(rows: SimulatedRows, num_rows: int) -> list[Unit]:
    """Return files of uneven sizes that hold all rows."""
    sizes = np.random.default_rng(0).uniform(0.5, 1.5, NUM_FILES)
    ends = np.round(np.cumsum(sizes) / sizes.sum() * num_rows).astype(int).tolist()
    return [Unit(SimulatedFile(a, b), rows) for a, b in itertools.pairwise([0, *ends])]


def read_epoch(job: tuple[str, int, range]) -> dict[str, float]:
    """Count how often every row comes in some lanes of epoch 0, stopping again and again."""
    path, num_rows, lanes = job
    counts = np.memmap(path, dtype=np.uint8, mode="w+", shape=(num_rows,))
    units = divide_files(make_files(SimulatedRows(), num_rows), NUM_LANES)
    generator = np.random.default_rng(lanes.start)
    seeks, sizes = [], []
    for lane in lanes:
        order = LaneOrder(units, lane, NUM_LANES, seed=0, max_epochs=1, **SHUFFLE)
        num_expected = num_rows // NUM_LANES
        stops = sorted(generator.integers(num_expected, size=STOPS).tolist())
        position, num_read, resumed = Position(), 0, None
        while position is not None:
            stop = stops.pop(0) if stops else None
            next_position = None
            for window in iter_windows(order, position.window):
                if resumed is not None:
                    seeks.append(time.perf_counter() - resumed)
                    resumed = None
                rows = np.fromiter(window.records, dtype=np.int64, count=len(window.records))
                rows = rows[order.shuffle(window.start, len(rows))][position.offset :]
                if stop is not None and num_read + len(rows) > stop:
                    taken = max(0, stop - num_read)
                    text = json.dumps(Position(window.start, position.offset + taken).to_list())
                    sizes.append(len(text))
                    counts[rows[:taken]] += 1
                    num_read += taken
                    resumed = time.perf_counter()
                    next_position = Position.from_list(json.loads(text))
                    break
                counts[rows] += 1
                num_read += len(rows)
                position = Position(window.start, 0)
            position = next_position
    counts.flush()
    memory = read_private_memory()
    return {
        "seek": float(np.median(seeks)),
        "worst": max(seeks),
        "state": max(sizes),
        "memory": memory,
    }


def read_private_memory() -> int:
    """KiB of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


def simulate_epoch(num_rows: int, num_processes: int) -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        lanes = [range(number, NUM_LANES, num_processes) for number in range(num_processes)]
        jobs = [(f"{folder}/{number}", num_rows, part) for number, part in enumerate(lanes)]
        with multiprocessing.Pool(num_processes) as pool:
            results = pool.map(read_epoch, jobs, chunksize=1)
        total = np.zeros(num_rows, dtype=np.uint8)
        for path, _, _ in jobs:
            total += np.memmap(path, dtype=np.uint8, mode="r")
    lost, repeated = int((total == 0).sum()), int((total > 1).sum())
    print(
        f"an epoch of {num_rows:,} rows in {NUM_FILES:,} files over {NUM_LANES:,} lanes, each "
        f"stopped {STOPS} times: {time.perf_counter() - started:,.0f} seconds"
    )
    print(f"  rows lost {lost:,}, repeated {repeated:,}")
    print(
        f"  one seek {np.median([r['seek'] for r in results]) * 1e3:.2f} ms (median), "
        f"{max(r['worst'] for r in results) * 1e3:.0f} ms (worst)"
    )
    print(f"  position {max(r['state'] for r in results)} bytes of JSON at most; memory of a "
          f"process {max(r['memory'] for r in results) / 1024:,.0f} MiB")  # fmt: skip
    assert not lost
    assert not repeated


def make_lanes(num_rows: int) -> tuple[TrainConfig, dict[str, list[Unit]]]:
    sigma = np.sqrt(2 * np.log(620 / 300))
    draws = np.random.default_rng(1).lognormal(np.log(300), sigma, 997)
    lengths = tuple(int(length) + 1 for length in draws)
    files = make_files(SimulatedTexts(lengths), num_rows)
    config = TrainConfig(
        batch=BatchConfig(NUM_LANES * 8192, 8192, 1024),
        data=DataConfig(
            mixture={
                "web": MixtureSourceConfig(weight=0.9),
                "rare": MixtureSourceConfig(weight=0.1),
            },
            **SHUFFLE,
        ),
    )
    split = NUM_FILES * 9 // 10
    return config, {
        "web": divide_files(files[:split], NUM_LANES),
        "rare": divide_files(files[split:], NUM_LANES),
    }


def simulate_lanes(num_rows: int, lanes_checked: int) -> None:
    started = time.perf_counter()
    config, units = make_lanes(num_rows)
    tokenizer = build_tokenizer(config.tokenizer)
    # Every `stride`-th lane is followed; each rank serves those of its own.
    chosen = set(range(0, NUM_LANES, NUM_LANES // lanes_checked))

    def read(states: dict, world: World, num_steps: int) -> tuple[dict, dict[int, list[str]]]:
        after, found = {}, {}
        for lane in world.lanes(NUM_LANES):
            if lane not in chosen:
                continue
            reader = Lane(config, units, tokenizer, lane).iter_packed(
                parse(LaneState, states[lane])
            )
            for packed in itertools.islice(reader, num_steps):
                rows = [
                    (chunk.source, chunk.record.next_cursor, chunk.index) for chunk in packed.chunks
                ]
                found.setdefault(lane, []).append(hashlib.sha256(repr(rows).encode()).hexdigest())
            after[lane] = packed.state.to_dict()
        return after, found

    states = initial_states(range(NUM_LANES))
    _, expected = read(states, World(), 2 * STOPS)
    found: dict[int, list[str]] = {lane: [] for lane in chosen}
    seeks, size = [], 0
    for stop in range(STOPS):
        world_size = WORLD_SIZES[stop % len(WORLD_SIZES)]
        checkpoint = {}
        for rank in range(world_size):
            world = World(rank=rank, local_rank=0, world_size=world_size)
            mine = {lane: states[lane] for lane in world.lanes(NUM_LANES)}
            begun = time.perf_counter()
            after, part = read(mine, world, 2)
            if part:
                seeks.append((time.perf_counter() - begun) / len(part))
            checkpoint |= after
            for lane, digests in part.items():
                found[lane] += digests
        text = json.dumps(checkpoint)
        size = max(size, len(text) // len(checkpoint))
        states |= {int(lane): state for lane, state in json.loads(text).items()}
    print(
        f"a mixture through {len(chosen)} of {NUM_LANES:,} lanes, {2 * STOPS} steps with {STOPS} "
        f"stops on {len(set(WORLD_SIZES))} numbers of ranks: {time.perf_counter() - started:,.0f} seconds"
    )
    print(
        f"  micro-batches that differ from the run without stops: "
        f"{sum(found[lane] != expected[lane] for lane in chosen)}"
    )
    print(f"  lane state {size:,} bytes; resume and two micro-batches of 8,192 tokens "
          f"{np.median(seeks) * 1e3:.0f} ms a lane")  # fmt: skip
    assert found == expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=NUM_ROWS)
    parser.add_argument("--lanes", type=int, default=128, help="to follow in part 2")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    simulate_lanes(arguments.rows, arguments.lanes)
    simulate_epoch(arguments.rows, arguments.processes)


if __name__ == "__main__":
    main()
