"""Speed and memory of one training step: this model by kernel, precision and compilation, and others.

    python scripts/bench_step.py                               # 6 blocks of width 384, one thread
    python scripts/bench_step.py --depth 28 --width 768 --contexts 1024 4096 --at-once 8   # a GPU
    python scripts/bench_step.py --only ours modernbert --contexts 1024 --out plots

A step is forward and backward, of the same documents for all: web-like lengths (lognormal, median
300, mean 620 tokens), cut at the context, 20 % of the tokens masked. In every round each contestant
takes one step, so that all see the same moments of a shared machine; ratios are medians over rounds.

    ours          packed, as a run trains: by attention backend, precision and torch.compile
    padded        the same model as it was published: padded batches of 32 documents with an attention
                  mask (--rows), scores of the vocabulary at all positions
    modernbert, nomic_bert, bert
                  of transformers, at this depth, width and vocabulary with as many weights a block;
                  padded, in their fastest attention; modernbert-sparse predicts at masked tokens alone

Tokens are those of documents, never padding. MFU is the work that this model needs for them
(`ModelSize.compute_flops`) as a share of the device's peak in the precision of the row; the peak of a
CPU is measured in every round, and the highest counts. Memory is the most
that a step takes beside the weights; on a CPU each contestant is measured in a process of its own. On
a GPU it is followed by what the command `plan` reckons with.
"""

import argparse
import gc
import json
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neobert_train.batch import Batch
from neobert_train.config.model_schema import NeoBERTModelConfig
from neobert_train.distributed import find_device
from neobert_train.machine.devices import PeakMeter
from neobert_train.modeling.attention import BACKENDS, choose_backend, find_obstacle
from neobert_train.modeling.blocks import rotary_factors
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.models.compilation import find_compiler_obstacle
from neobert_train.models.neobert import NeoBERTEncoder
from neobert_train.models.neobert_cost import NeoBERTCost
from neobert_train.objectives.masked_lm import MaskedLM
from neobert_train.world import World

REFERENCE = "padded fp32"
MASK_TOKEN, NUM_SPECIAL = 3, 5
# So long a step is measured after a single one that sets kernels up.
_LONG_STEP_SECONDS = 30.0
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# A step: takes the documents, gives the mean loss.
Step = Callable[["Sample"], Tensor]


@dataclass(frozen=True)
class Shape:
    """Of all models."""

    depth: int
    width: int
    vocab_size: int

    @property
    def heads(self) -> int:
        return max(1, self.width // 64)

    def to_config(self) -> NeoBERTModelConfig:
        return NeoBERTModelConfig(
            hidden_size=self.width, num_hidden_layers=self.depth, num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
        )  # fmt: skip

    def to_neobert(self) -> NeoBERTConfig:
        config = self.to_config()
        return NeoBERTConfig(
            hidden_size=config.hidden_size, num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads, vocab_size=self.vocab_size,
            intermediate_size=config.intermediate_size,
        )  # fmt: skip


@dataclass(frozen=True)
class PaddedRows:
    """Some documents side by side: ids, mask and labels [rows, longest], -100 where none is asked."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    def split(self, num_rows: int) -> "list[PaddedRows]":
        parts = (tensor.split(num_rows) for tensor in vars(self).values())
        return [PaddedRows(*tensors) for tensors in zip(*parts, strict=True)]


@dataclass(frozen=True)
class Sample:
    """The same documents in both forms."""

    packed: Batch
    padded: list[PaddedRows]

    @property
    def num_positions(self) -> int:
        return sum(rows.input_ids.numel() for rows in self.padded)


def make_sample(
    num_tokens: int, context: int, rows: int, vocab_size: int, at_once: int = 32, seed: int = 0
) -> Sample:
    """Return documents that together have `num_tokens` tokens; `rows` at most are padded together.

    Of these `at_once` are computed together.
    """
    generator = np.random.default_rng(seed)
    sigma = math.sqrt(2 * math.log(620 / 300))
    lengths: list[int] = []
    while (left := num_tokens - sum(lengths)) > 0:
        length = int(generator.lognormal(math.log(300), sigma)) + 1
        parts = [context] * (length // context) + [length % context] * (length % context > 0)
        for part in parts:
            if left > 0:
                lengths.append(min(part, left))
                left -= lengths[-1]
    bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    ids = torch.from_numpy(generator.integers(NUM_SPECIAL, vocab_size, num_tokens))
    chosen = generator.choice(num_tokens, num_tokens // 5, replace=False)
    masked = torch.from_numpy(np.sort(chosen))
    labels = torch.full((num_tokens,), -100)
    labels[masked] = ids[masked]
    inputs = ids.clone()
    inputs[masked] = MASK_TOKEN
    packed = Batch(
        input_ids=inputs,
        position_ids=torch.cat([torch.arange(length) for length in lengths]).int(),
        cu_seqlens=bounds,
        max_seqlen=max(lengths),
        masked_positions=masked,
        labels=ids[masked],
        lane=0,
        lane_state={},
    )
    documents = list(zip(inputs.split(lengths), labels.split(lengths), strict=True))
    padded = [_pad(documents[i : i + rows]) for i in range(0, len(documents), rows)]
    return Sample(packed, [part for together in padded for part in together.split(at_once)])


def _pad(documents: list[tuple[Tensor, Tensor]]) -> PaddedRows:
    inputs, labels = zip(*documents, strict=True)
    pad = nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(ids) for ids in inputs], batch_first=True)
    return PaddedRows(pad(inputs, batch_first=True), mask, pad(labels, True, -100))


def move(sample: Sample, device: torch.device) -> Sample:
    padded = [
        PaddedRows(*(tensor.to(device) for tensor in vars(rows).values())) for rows in sample.padded
    ]
    return Sample(sample.packed.to(device), padded)


@dataclass
class Contestant:
    """One way to take a step.

    Attributes:
        name: kind, precision and variant.
        build: makes its model; raises for what this machine lacks.
        step: once built.
        problem: why it does not take part, or no longer.
        seconds: of every round.
        peak_bytes: memory of a step beside the weights; None where it was not measured.
    """

    name: str
    build: Callable[[], tuple[nn.Module, Step]]
    model: nn.Module | None = None
    step: Step | None = None
    problem: str | None = None
    seconds: list[float] = field(default_factory=list)
    peak_bytes: float | None = None

    @property
    def precision(self) -> str:
        """A key of `DTYPES`."""
        return self.name.split()[1]


def list_contestants(shape: Shape, device: torch.device) -> Iterator[Contestant]:
    """Yield all that there are, whether or not they can run here."""
    for precision, dtype in DTYPES.items():
        for backend in BACKENDS:
            for compiled in (False, True):
                name = f"ours {precision} {backend}{' compiled' if compiled else ''}"
                yield Contestant(name, _bind(build_ours, shape, device, dtype, backend, compiled))
        yield Contestant(f"padded {precision}", _bind(build_padded, shape, device, dtype))
        for kind in ("modernbert", "modernbert-sparse", "nomic_bert", "bert"):
            build = _bind(build_transformers, shape, device, dtype, kind)
            yield Contestant(f"{kind} {precision}", build)


def _bind(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def build_ours(
    shape: Shape, device: torch.device, dtype: torch.dtype, backend: str, compiled: bool
) -> tuple[nn.Module, Step]:
    obstacle = find_obstacle(backend, device, dtype)
    obstacle = obstacle or (find_compiler_obstacle(device) if compiled else None)
    if obstacle:
        raise RuntimeError(obstacle)
    torch.manual_seed(0)
    model = NeoBERTForMaskedLM(shape.to_neobert()).to(device, dtype)
    model.model.attention_backend = backend
    encoder = NeoBERTEncoder(model)
    if compiled:
        encoder.compile(device)
    objective = MaskedLM(encoder)

    def step(sample: Sample) -> Tensor:
        mean = objective.compute(sample.packed).loss_sum / sample.packed.num_targets
        mean.backward()
        return mean

    return model, step


def build_padded(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, Step]:
    torch.manual_seed(0)
    model = NeoBERTForMaskedLM(shape.to_neobert()).to(device, dtype)

    def forward(rows: PaddedRows) -> Tensor:
        batch, length = rows.input_ids.shape
        x = model.model.encoder(rows.input_ids).flatten(0, 1)
        positions = torch.arange(length, device=device).repeat(batch)
        turns = rotary_factors(positions, model.config.dim_head)
        mask = rows.attention_mask.bool()[:, None, None, :]
        for block in model.model.transformer_encoder:
            q, k, v = (
                part.unflatten(0, (batch, length)).transpose(1, 2)
                for part in block.project(x, turns)
            )
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = block.combine(x, attended.transpose(1, 2).flatten(0, 1))
        scores = model.decoder(model.model.layer_norm(x)).float()  # as autocast does
        return F.cross_entropy(scores, rows.labels.flatten(), reduction="sum")

    return model, _step_by_rows(forward)


def build_transformers(
    shape: Shape, device: torch.device, dtype: torch.dtype, kind: str
) -> tuple[nn.Module, Step]:
    import transformers

    width = shape.to_neobert().feed_forward_width
    common = {
        "hidden_size": shape.width, "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads, "vocab_size": shape.vocab_size,
        "max_position_embeddings": 8192, "pad_token_id": 0, "bos_token_id": None,
        "eos_token_id": None, "cls_token_id": None, "sep_token_id": None,
    }  # fmt: skip
    match kind:
        case "bert":
            config = transformers.BertConfig(
                **common, intermediate_size=4 * shape.width, hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )  # fmt: skip
            build: Any = transformers.BertForMaskedLM
        case "nomic_bert":
            config = transformers.NomicBertConfig(**common, intermediate_size=width)
            build = transformers.NomicBertForMaskedLM
        case _:
            config = transformers.ModernBertConfig(
                **common, intermediate_size=width, sparse_prediction=kind.endswith("sparse")
            )
            build = transformers.ModernBertForMaskedLM
    flash = device.type == "cuda" and dtype is not torch.float32
    flash = flash and transformers.utils.is_flash_attn_2_available()
    config._attn_implementation = "flash_attention_2" if flash else "sdpa"
    torch.manual_seed(0)
    model = build(config).to(device, dtype).train()

    def forward(rows: PaddedRows) -> Tensor:
        loss = model(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask, labels=rows.labels
        ).loss
        return loss * (rows.labels != -100).sum()

    return model, _step_by_rows(forward)


def _step_by_rows(forward: Callable[[PaddedRows], Tensor]) -> Step:
    def step(sample: Sample) -> Tensor:
        total = torch.zeros((), device=sample.packed.input_ids.device)
        for rows in sample.padded:
            loss = forward(rows) / sample.packed.num_targets
            loss.backward()
            total += loss.detach().float()
        return total

    return step


def take_step(contestant: Contestant, sample: Sample) -> tuple[float, float]:
    """Return seconds of a step, and its loss; gradients are dropped afterwards."""
    assert contestant.step is not None
    assert contestant.model is not None
    start = time.perf_counter()
    loss = contestant.step(sample)
    if loss.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    contestant.model.zero_grad(set_to_none=True)
    return seconds, loss.item()


def prepare(contestant: Contestant, sample: Sample) -> float:
    """Build, and take the steps that set kernels up; the loss, NaN for one that cannot run."""
    try:
        contestant.model, contestant.step = contestant.build()
        seconds, loss = take_step(contestant, sample)
        if seconds < _LONG_STEP_SECONDS:
            _, loss = take_step(contestant, sample)
        if sample.packed.input_ids.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            take_step(contestant, sample)
            contestant.peak_bytes = torch.cuda.max_memory_allocated() - before
        return loss
    except Exception as error:  # missing packages, kernels or memory: all say why
        contestant.problem = str(error).splitlines()[0]
        contestant.model = contestant.step = None
        return math.nan


def take_round(contestants: list[Contestant], sample: Sample, number: int) -> None:
    """Let each take a step, in an order of this round; one that runs out of memory takes no more."""
    left = [contestant for contestant in contestants if contestant.step]
    for contestant in random.Random(number).sample(left, len(left)):
        try:
            contestant.seconds.append(take_step(contestant, sample)[0])
        except torch.OutOfMemoryError:
            contestant.problem = f"ran out of memory in round {number + 1}"
            print(f"  {contestant.name:32} {contestant.problem}", flush=True)
        if contestant.problem:  # out of the handler, which holds what the step had computed
            contestant.model = contestant.step = None
            gc.collect()
            torch.cuda.empty_cache()


def read_status(name: str) -> int:
    """Return bytes of a line of /proc/self/status, such as VmHWM, the most memory so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(name)


def measure_memory(contestant: Contestant, sample: Sample) -> int:
    """Return the most that the first step takes beside what was there, in a process of its own."""
    contestant.model, contestant.step = contestant.build()
    before = read_status("VmRSS")
    take_step(contestant, sample)
    return read_status("VmHWM") - before


def run_context(arguments: argparse.Namespace, context: int) -> list[dict[str, Any]]:
    """Return all contestants at one context; a row of the table for each."""
    device = find_device(World())
    shape = Shape(arguments.depth, arguments.width, arguments.vocab)
    drawn = arguments.tokens, context, arguments.rows, shape.vocab_size, arguments.at_once
    sample = move(make_sample(*drawn), device)
    contestants = [
        contestant
        for contestant in list_contestants(shape, device)
        if contestant.name == REFERENCE
        or not arguments.only
        or any(contestant.name.startswith(name) for name in arguments.only)
    ]
    if arguments.measure_memory:
        (contestant,) = (c for c in contestants if c.name == arguments.measure_memory)
        print(measure_memory(contestant, sample))
        return []
    tokens, documents = sample.packed.num_tokens, len(sample.packed.cu_seqlens) - 1
    print(f"\ncontext {context}: {tokens:,} tokens in {documents} documents, "
          f"{sample.num_positions:,} positions padded {arguments.rows} at a time; "
          f"model.attention=auto takes {choose_backend('auto', device, torch.bfloat16)} in bf16",
          flush=True)  # fmt: skip
    for contestant in contestants:
        loss = prepare(contestant, sample)
        shown = contestant.problem or f"loss {loss:.4f}"
        print(f"  {contestant.name:32} {shown}", flush=True)
    running = [contestant for contestant in contestants if contestant.step]
    meters = {name: PeakMeter(device, dtype) for name, dtype in DTYPES.items()}
    for number in range(arguments.rounds):
        take_round(running, sample, number)
        for meter in meters.values():
            meter.read()
    if device.type == "cpu" and not arguments.no_memory:
        left = [contestant for contestant in running if contestant.step]
        for contestant in left:
            contestant.model = contestant.step = None
        for contestant in left:
            contestant.peak_bytes = _measure_apart(arguments, context, contestant.name)
    peaks = {name: meter.read() or math.nan for name, meter in meters.items()}
    return _tabulate(running, sample, shape, peaks, context)


def _measure_apart(arguments: argparse.Namespace, context: int, name: str) -> float | None:
    command = [
        sys.executable, __file__, "--depth", arguments.depth, "--width", arguments.width,
        "--vocab", arguments.vocab, "--tokens", arguments.tokens, "--rows", arguments.rows,
        "--at-once", arguments.at_once, "--threads", arguments.threads, "--contexts", context,
        "--measure-memory", name,
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    return None if done.returncode else float(done.stdout.split()[-1])


def plan_bytes(name: str, shape: Shape, batch: Batch) -> float | None:
    """Memory of a step beside the weights, as `plan` reckons; None for what it does not know."""
    kind, precision, *variant = name.split()
    if kind != "ours" or variant[0] == "sdpa" or batch.input_ids.device.type != "cuda":
        return None
    bf16, compiled = precision == "bf16", "compiled" in variant
    cost = NeoBERTCost(shape.to_config(), shape.vocab_size)
    tokens, target_share = len(batch.input_ids), batch.num_targets / len(batch.input_ids)
    gradients = (2 if bf16 else 4) * cost.size.parameters
    return cost.estimate_activation_bytes(tokens, target_share, bf16, compiled) + gradients


def _tabulate(
    contestants: list[Contestant],
    sample: Sample,
    shape: Shape,
    peaks: dict[str, float],
    context: int,
) -> list[dict[str, Any]]:
    reference = next((c.seconds for c in contestants if c.name == REFERENCE), [])
    batch, size = sample.packed, NeoBERTCost(shape.to_config(), shape.vocab_size).size
    flops = size.compute_flops(batch.num_tokens, batch.squared_lengths, batch.num_targets)
    rows = []
    for contestant in (c for c in contestants if not c.problem):
        seconds = statistics.median(contestant.seconds)
        ratios = [a / b for a, b in zip(reference, contestant.seconds, strict=False)]
        rows.append(
            {
                "context": context,
                "contestant": contestant.name,
                "seconds": seconds,
                "tokens_per_second": batch.num_tokens / seconds,
                "mfu": flops / seconds / peaks[contestant.precision],
                "peak_bytes": contestant.peak_bytes,
                "planned_bytes": plan_bytes(contestant.name, shape, batch),
                # None where the reference does not fit into memory.
                "times_reference": statistics.median(ratios) if ratios else None,
            }
        )
    problems = [
        {"context": context, "contestant": c.name, "problem": c.problem}
        for c in contestants
        if c.problem
    ]
    return sorted(rows, key=lambda row: row["seconds"]) + problems


def format_table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table."""
    lines = [
        f"| context | step | seconds | tokens/s | MFU | memory | x {REFERENCE} |",
        "| --: | :-- | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        if "problem" in row:
            lines.append(
                f"| {row['context']:,} | {row['contestant']}: {row['problem']} | | | | | |"
            )
            continue
        lines.append(
            f"| {row['context']:,} | {row['contestant']} | {row['seconds']:.3f} "
            f"| {row['tokens_per_second']:,.0f} | {_format_share(row['mfu'])} "
            f"| {_format_memory(row)} | {_format_ratio(row['times_reference'])} |"
        )
    return "\n".join(lines)


def _format_share(share: float) -> str:
    return f"{share:.0%}" if share <= 1 else ""  # of a peak that is not known, or was not reached


def _format_memory(row: dict[str, Any]) -> str:
    if row["peak_bytes"] is None:
        return ""
    planned = row["planned_bytes"]
    return f"{row['peak_bytes'] / 2**30:.2f} GiB" + (
        "" if planned is None else f" (plan {planned / 2**30:.2f})"
    )


def _format_ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Return tokens per second as bars, one panel for each context."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if "problem" not in row]
    contexts = list(dict.fromkeys(row["context"] for row in rows))
    longest = max(sum(row["context"] == context for row in rows) for context in contexts)
    figure, panels = plt.subplots(
        1, len(contexts), figsize=(6 * len(contexts), 1 + 0.3 * longest), squeeze=False
    )
    for panel, context in zip(panels[0], contexts, strict=True):
        shown = [row for row in rows if row["context"] == context][::-1]
        names = [row["contestant"] for row in shown]
        colours = ["tab:blue" if name.startswith("ours") else "tab:gray" for name in names]
        panel.barh(names, [row["tokens_per_second"] for row in shown], color=colours)
        panel.set(title=f"context {context:,}", xlabel="tokens/s, forward and backward")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Return those that say which model takes a step of what."""
    parser.add_argument("--depth", type=int, default=6, help="blocks")
    parser.add_argument("--width", type=int, default=384, help="of the residual stream")
    parser.add_argument("--vocab", type=int, default=30_522, help="token ids")
    parser.add_argument("--tokens", type=int, help="of a micro-batch",
                        default=65_536 if torch.cuda.is_available() else 4096)  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_model_arguments(parser)
    parser.add_argument("--contexts", type=int, nargs="*", default=[512, 1024, 4096])
    parser.add_argument("--rows", type=int, default=32, help="documents that are padded together")
    parser.add_argument("--at-once", type=int, default=32,
                        help="of them are computed together; fewer need less memory")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="beginnings of names, such as ours bert")
    parser.add_argument("--no-memory", action="store_true", help="on a CPU, which takes a while")
    parser.add_argument("--out", type=Path, help="folder for bench_step.md, .json and .svg")
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [row for context in arguments.contexts for row in run_context(arguments, context)]
    if arguments.measure_memory:
        return
    print(f"\n{format_table(rows)}")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "bench_step.md").write_text(format_table(rows) + "\n")
        (arguments.out / "bench_step.json").write_text(json.dumps(rows, indent=1))
        draw(rows, arguments.out / "bench_step.svg")


if __name__ == "__main__":
    main()
