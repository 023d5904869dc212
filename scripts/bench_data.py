"""Speed of the data plane, as ratios from one interleaved run.

    python scripts/bench_data.py                      # on web-like documents cut from the shipped texts
    python scripts/bench_data.py --paths 'texts/*.parquet' --column text

Every round measures each way of reading once, on the same documents and one thread:

    tokenizer   bare `Tokenizer.encode_batch_fast` on the texts, nothing else
    lane        texts to masked, packed batches, in this process
    worker      the same through one worker process
    prepared    token shards to masked, packed batches, in this process

and the table shows tokens per second (median over the rounds) with the ratios that matter. Then comes
how long training waits for its data when pauses stand for its steps: on documents that are tokenised
on the way, at half the speed of one worker, and on token shards, at the speed of a fast GPU.
"""

import argparse
import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from neobert_train.config.data_schema import DataConfig
from neobert_train.config.schema import TrainConfig
from neobert_train.config.store import compose_config, to_typed
from neobert_train.data.corpus import open_corpus
from neobert_train.data.lane.encoding import split_document
from neobert_train.data.lane.lane import Lane, LaneState, initial_states
from neobert_train.data.lane.packing import Packer
from neobert_train.data.loader import StepLoader
from neobert_train.data.shards.preparation import list_jobs, run_jobs, write_manifest
from neobert_train.data.sources import EMBEDDED_TEXTS, Record
from neobert_train.tokenizers.loading import build_tokenizer, load_tokenizer

WAITS = 8
# What the 28 x 768 model is meant to train on one H100.
GPU_PACE = 350_000.0


def write_web_like_documents(path: Path, num_documents: int) -> None:
    """Return documents with lognormal lengths (median 300, mean 620 tokens) of words of the shipped texts."""
    words = " ".join(pq.read_table(EMBEDDED_TEXTS)["content"].to_pylist()).split()
    generator = np.random.default_rng(0)
    sigma = math.sqrt(2 * math.log(620 / 300))
    lengths = generator.lognormal(math.log(300 / 1.15), sigma, num_documents).astype(int) + 1
    texts = []
    for length in lengths:
        start = int(generator.integers(len(words)))
        texts.append(" ".join(itertools.islice(itertools.cycle(words), start, start + int(length))))
    pq.write_table(pa.table({"text": texts}), path, row_group_size=1000)


def make_config(paths: list[str], column: str, context: int, micro_batch: int) -> TrainConfig:
    quoted = ",".join(f'"{path}"' for path in paths)
    overrides = [
        "data=files",
        f"data.paths=[{quoted}]",
        f"data.column={column}",
        f"batch.context_length={context}",
        f"batch.micro_batch_tokens={micro_batch}",
        f"batch.global_batch_tokens={micro_batch}",
    ]
    config = to_typed("train", compose_config("train", overrides))
    assert isinstance(config, TrainConfig)
    return config


def count_tokens(batches: Iterator, num_tokens: int) -> float:
    """Return tokens per second over at least `num_tokens` tokens."""
    start, count = time.perf_counter(), 0
    while count < num_tokens:
        count += next(batches).num_tokens
    return count / (time.perf_counter() - start)


def measure_tokenizer(texts: list[str], path: str) -> float:
    tokenizer = load_tokenizer(path)._tokenizer
    start, count = time.perf_counter(), 0
    for first in range(0, len(texts), 64):
        encoded = tokenizer.encode_batch_fast(texts[first : first + 64], add_special_tokens=False)
        count += sum(len(encoding) for encoding in encoded)
    return count / (time.perf_counter() - start)


def iter_lane(config: TrainConfig) -> Iterator:
    tokenizer = build_tokenizer(config.tokenizer)
    return Lane(config, open_corpus(config, tokenizer), tokenizer, 0).iter_batches(LaneState())


def prepare(config: TrainConfig, folder: str) -> None:
    config.data.prepared_dir = folder
    tokenizer = build_tokenizer(config.tokenizer)
    jobs = list_jobs(config, tokenizer)
    flat = [job for files in jobs.values() for file in files for job in file]
    entries = {
        result.entry["shard"]: result.entry for result in run_jobs(flat, os.cpu_count() or 1)
    }
    write_manifest(config.data, tokenizer, jobs, entries)


def measure_wait(config: TrainConfig, num_lanes: int, pace: float) -> float:
    """Return share of the time that a process waits which computes `pace` tokens a second.

    It serves all lanes with the default number of workers.
    """
    config.batch.global_batch_tokens = num_lanes * config.batch.micro_batch_tokens
    config.data.num_workers = DataConfig().num_workers
    tokenizer = build_tokenizer(config.tokenizer)
    units = open_corpus(config, tokenizer)
    loader = StepLoader(config, units, initial_states(range(num_lanes)))
    loader.next_step()
    pause, waited = config.batch.global_batch_tokens / pace, 0.0
    for _ in range(WAITS):
        time.sleep(pause)
        start = time.perf_counter()
        loader.next_step()
        waited += time.perf_counter() - start
    loader.close()
    return waited / (waited + WAITS * pause)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--paths", nargs="*", help="parquet, JSONL or text files")
    parser.add_argument("--column", default="text")
    parser.add_argument("--documents", type=int, default=4000, help="to read in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--micro-batch", type=int, default=65_536)
    parser.add_argument("--lanes", type=int, default=8, help="of a process, for how long it waits")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.paths:
            paths = arguments.paths
        else:
            paths = [f"{folder}/documents.parquet"]
            write_web_like_documents(Path(paths[0]), arguments.documents)
        config = make_config(paths, arguments.column, arguments.context, arguments.micro_batch)
        prepared = make_config(paths, arguments.column, arguments.context, arguments.micro_batch)
        prepare(prepared, f"{folder}/prepared")
        tokenizer = build_tokenizer(config.tokenizer)
        units = open_corpus(config, tokenizer)["corpus"]
        records = (record for unit in units for record in unit.iter_records(0))
        texts = [record.text for record in records if isinstance(record, Record)]
        texts = texts[: arguments.documents]
        num_tokens = sum(len(ids) for ids in tokenizer.encode(texts))
        speeds: dict[str, list[float]] = {}
        for number in range(arguments.rounds + 1):
            found = {"tokenizer": measure_tokenizer(texts, config.tokenizer.path)}
            found["lane"] = count_tokens(iter_lane(config), num_tokens)
            config.data.num_workers = 1
            loader = StepLoader(config, open_corpus(config, tokenizer), initial_states([0]))
            steps = (batch for _ in itertools.count() for batch in loader.next_step())
            for _ in range(2 * config.data.prefetch_micro_batches):
                next(steps)  # what was read ahead while the process started does not count
            found["worker"] = count_tokens(steps, num_tokens)
            loader.close()
            found["prepared"] = count_tokens(iter_lane(prepared), 10 * num_tokens)
            if number:  # the first round warms the caches up
                for name, speed in found.items():
                    speeds.setdefault(name, []).append(speed)
        print_table(speeds, len(texts), num_tokens)
        half = statistics.median(speeds["worker"]) / 2
        for name, source, pace in [("worker", config, half), ("prepared", prepared, GPU_PACE)]:
            share = measure_wait(source, arguments.lanes, pace)
            print(f"waits {share:.2%} of the time at {pace:,.0f} tokens/s ({name})")
    print_packing()


def print_table(speeds: dict[str, list[float]], num_documents: int, num_tokens: int) -> None:
    """Median speeds, and medians of the ratios within a round."""
    print(f"{num_documents:,} documents, {num_tokens:,} tokens, {len(speeds['lane'])} rounds")
    for name, values in speeds.items():
        print(f"{name:10} {statistics.median(values):>14,.0f} tokens/s")
    for one, other in [("lane", "tokenizer"), ("worker", "tokenizer"), ("prepared", "lane")]:
        ratios = [a / b for a, b in zip(speeds[one], speeds[other], strict=True)]
        print(
            f"{one} / {other}: {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )


def print_packing() -> None:
    """Return how full micro-batches of web-like documents are, as a mean over 200 of them."""
    sigma = math.sqrt(2 * math.log(620 / 300))
    draws = np.random.default_rng(1).lognormal(math.log(300), sigma, 100_000)
    for micro_batch, context in itertools.product((65_536, 8192), (1024, 4096)):
        documents = (np.zeros(int(length) + 1) for length in itertools.cycle(draws))
        parts = (part for document in documents for part in split_document(document, context))
        packer = Packer(lambda parts=parts: bytes(len(next(parts)) + 2), micro_batch, 64)
        filled = sum(len(chunk) for _ in range(200) for chunk in packer.pack())
        print(
            f"packed at context {context:,}, {micro_batch:,} tokens: {filled / 200 / micro_batch:.3%}"
        )


if __name__ == "__main__":
    main()
