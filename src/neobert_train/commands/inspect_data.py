"""Show what the global batch of a step holds, on any machine and without the model."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from neobert_train.batch import MicroBatch
from neobert_train.config.command_schema import InspectDataConfig
from neobert_train.config.derived import compute_num_lanes
from neobert_train.config.saved import find_differences, load_train_config
from neobert_train.config.typed import parse
from neobert_train.data.corpus import open_corpus
from neobert_train.data.lane.encoding import name_document
from neobert_train.data.lane.lane import Lane, LaneState, PackedChunks, initial_states
from neobert_train.data.sources import Unit
from neobert_train.run.checkpoint import load_state
from neobert_train.run.checkpoint_search import find_checkpoint
from neobert_train.run.directory import RunDirectory
from neobert_train.terminal import print_output
from neobert_train.tokenizers.loading import build_tokenizer
from neobert_train.tokenizers.text_tokenizer import TextTokenizer
from neobert_train.world import World

_SHOWN_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class LaneBatch:
    """What one lane gives to the step."""

    packed: PackedChunks
    batch: MicroBatch[np.ndarray]


def run(config: InspectDataConfig, world: World) -> None:
    """Print the documents, sources, fill and masked text of the global batch of `step`.

    Raises:
        InputError: the data cannot be read.
    """
    tokenizer = build_tokenizer(config.tokenizer)
    units = open_corpus(config, tokenizer)
    first_step, states = find_nearest_states(config)
    lanes = list(iter_lanes(config, units, tokenizer, states, first_step))
    print_output(format_step(config, lanes, units, tokenizer))


def find_nearest_states(config: InspectDataConfig) -> tuple[int, dict[int, dict[str, Any]]]:
    """Return the state of every lane before a step, and that step: the nearest from which to read on.

    That is the newest checkpoint of the run before the step asked for, or the beginning.
    """
    run = RunDirectory(config.output_dir)
    if run.config_file.exists():
        fatal, _ = find_differences(load_train_config(run.config_file), config)
        steps = [step for step, _ in run.list_checkpoints() if step < config.step]
        if not fatal and steps:
            folder = find_checkpoint(run, steps[-1])
            assert folder is not None
            return steps[-1] + 1, load_state(folder).lanes
    return 1, initial_states(range(compute_num_lanes(config)))


def iter_lanes(
    config: InspectDataConfig,
    units: Mapping[str, Sequence[Unit]],
    tokenizer: TextTokenizer,
    states: Mapping[int, dict[str, Any]],
    first_step: int,
) -> Iterator[LaneBatch]:
    """Yield what every lane gives to the step, in the order of the lanes."""
    with tqdm(
        total=len(states) * (config.step - first_step + 1),
        desc=f"reading steps {first_step} to {config.step}",
        unit="micro-batch",
        disable=None if config.logging.progress else True,  # None: only on a terminal
        leave=False,
    ) as bar:
        for lane_number in sorted(states):
            lane = Lane(config, units, tokenizer, lane_number)
            packed_batches = lane.iter_packed(parse(LaneState, states[lane_number]))
            for step in range(first_step, config.step + 1):
                packed = next(packed_batches)
                bar.update()
                if step == config.step:
                    yield LaneBatch(packed, lane.mask(packed))


def format_step(
    config: InspectDataConfig,
    lanes: Sequence[LaneBatch],
    units: Mapping[str, Sequence[Unit]],
    tokenizer: TextTokenizer,
) -> str:
    """Return the global batch as text."""
    names = list(units)
    num_tokens = sum(lane.batch.num_tokens for lane in lanes)
    num_targets = sum(lane.batch.num_targets for lane in lanes)
    chunks = [chunk for lane in lanes for chunk in lane.packed.chunks]
    num_text = sum(lane.batch.num_text for lane in lanes)
    num_unknown = sum(lane.batch.num_unknown for lane in lanes)
    lines = [
        f"step {config.step}: {len(lanes)} micro-batches of {config.batch.micro_batch_tokens:,} "
        f"tokens",
        f"  fill        {num_tokens / config.batch.global_batch_tokens:.3%}, {num_tokens:,} tokens "
        f"in {len(chunks):,} documents or parts of one",
        f"  to predict  {num_targets:,} tokens, {num_targets / max(1, num_text):.2%} of the text",
        f"  unknown     {num_unknown:,} tokens, {num_unknown / max(1, num_text):.2%} of the text",
    ]
    for number, name in enumerate(names):
        own = [len(chunk) for chunk in chunks if chunk.source == number]
        lines.append(
            f"  {name:11} {sum(own):,} tokens ({sum(own) / num_tokens:.2%}) in {len(own):,}"
        )
    shown = itertools.islice(_iter_in_turns(lanes), config.documents)
    for lane, index in shown:
        lines += ["", *_format_chunk(lane, index, names, units, tokenizer)]
    return "\n".join(lines)


def _iter_in_turns(lanes: Sequence[LaneBatch]) -> Iterator[tuple[LaneBatch, int]]:
    """Yield the first document of every lane, then the second, and so on."""
    for index in range(max(len(lane.packed.chunks) for lane in lanes)):
        for lane in lanes:
            if index < len(lane.packed.chunks):
                yield lane, index


def _format_chunk(
    lane: LaneBatch,
    index: int,
    names: Sequence[str],
    units: Mapping[str, Sequence[Unit]],
    tokenizer: TextTokenizer,
) -> list[str]:
    chunk, batch = lane.packed.chunks[index], lane.batch
    start, end = batch.cu_seqlens[index : index + 2].tolist()
    inside = (batch.masked_positions >= start) & (batch.masked_positions < end)
    predicted = tokenizer.decode(batch.labels[inside].tolist())
    part = f", part {chunk.index + 1}" if chunk.index else ""
    return [
        f"lane {batch.lane}, document {index + 1}: {names[chunk.source]}, "
        f"{name_document(chunk.record, units[names[chunk.source]][chunk.unit])}{part}, "
        f"{end - start} tokens",
        f"  sees      {_shorten(tokenizer.decode(batch.input_ids[start:end].tolist()))}",
        f"  predicts  {_shorten(predicted)}",
    ]


def _shorten(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _SHOWN_CHARACTERS else f"{flat[:_SHOWN_CHARACTERS]} ..."
