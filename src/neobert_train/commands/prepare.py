"""Tokenise once what an experiment reads, into shards that the same experiment trains from."""

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from neobert_train.config.command_schema import PrepareConfig
from neobert_train.config.quoting import to_shell
from neobert_train.data.shards.preparation import (
    ShardJob,
    claim_folder,
    list_jobs,
    run_jobs,
    write_manifest,
)
from neobert_train.signals import StopSignal
from neobert_train.terminal import print_output
from neobert_train.tokenizers.loading import build_tokenizer, pin_tokenizer
from neobert_train.world import World


def run(config: PrepareConfig, world: World) -> None:
    """Write the shards that are not in `data.prepared_dir` yet, and its manifest.

    Raises:
        InputError: a source or the tokenizer cannot be read, a process was killed, or another one
            prepares into the same folder.
        StopSignal: a signal asked to stop; shards that are complete stay.
    """
    started = time.monotonic()
    path = pin_tokenizer(config.tokenizer.path) or config.tokenizer.path
    config = replace(config, tokenizer=replace(config.tokenizer, path=path))
    tokenizer = build_tokenizer(config.tokenizer)
    jobs = list_jobs(config, tokenizer)
    flat: list[ShardJob] = [job for files in jobs.values() for file in files for job in file]
    entries: dict[str, dict[str, Any]] = {}
    num_found = num_tokens = num_records = 0
    lock = claim_folder(Path(str(config.data.prepared_dir)), flat)
    num_processes = min(config.num_processes or os.cpu_count() or 1, len(flat))
    with (
        contextlib.closing(run_jobs(flat, num_processes)) as results,
        tqdm(total=len(flat), unit="shard", disable=not config.logging.progress) as bar,
    ):
        try:
            for result in results:
                entries[result.entry["shard"]] = result.entry
                num_found += result.found
                num_records += result.entry["records"]
                num_tokens += result.entry["tokens"]
                bar.set_postfix_str(f"{num_tokens:,} tokens")
                bar.update()
        except StopSignal as stop:
            raise StopSignal(
                f"{stop}: {len(entries)} of {len(flat)} shards are complete and stay; the same "
                "command continues"
            ) from None
    write_manifest(config.data, tokenizer, jobs, entries)
    lock.close()
    seconds, folder = time.monotonic() - started, str(config.data.prepared_dir)
    print_output(
        f"{folder}: {num_records:,} records, {num_tokens:,} tokens in "
        f"{len(flat)} shards, {num_found} of which were there already and are sound; "
        f"{seconds:,.0f} seconds\n"
        f"Next: train with the same settings and {to_shell('data.prepared_dir', folder)}"
    )
