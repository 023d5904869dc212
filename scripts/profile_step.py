"""Where the time of a training step goes: a table, and a trace for chrome://tracing or Perfetto.

    python scripts/profile_step.py                                    # 6 blocks of width 384
    python scripts/profile_step.py --depth 28 --width 768 --compile --trace trace.json

A step is forward and backward of web-like documents, as in bench_step.py. Backward time counts to the
part whose forward it undoes. Of a compiled model everything between the matrix products and attention
is one part, since the compiler fuses it.
"""

import argparse
import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from bench_step import DTYPES, Shape, add_model_arguments, build_ours, make_sample, move
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from neobert_train.distributed import find_device
from neobert_train.machine.devices import find_peak_flops
from neobert_train.machine.peak import format_flops
from neobert_train.modeling import blocks, layouts
from neobert_train.modeling.attention import choose_backend
from neobert_train.modeling.heads import VocabularyProjection
from neobert_train.models.neobert_cost import NeoBERTCost
from neobert_train.world import World

PRODUCTS = {"aten::mm", "aten::addmm"}
_MARK = "part: "
# Where names tell: what is not a module, and what the compiler has made.
_BY_NAME = {
    "_PackedAttention": "attention", "FlashAttn": "attention", "varlen_attn": "attention",
    "memory_efficient": "attention", "_fMHA": "attention", "cpp_fused": "fused by the compiler",
    "triton_": "fused by the compiler", "CompiledFunction": "fused by the compiler",
    "_SumCrossEntropy": "loss", "EmbeddingBackward": "embedding", "aten::embedding": "embedding",
}  # fmt: skip


@contextlib.contextmanager
def marked_parts(model: nn.Module) -> Iterator[None]:
    """Give the time of modules and functions the names of their parts."""
    modules = {
        nn.RMSNorm: "norms", blocks.SwiGLU: "SwiGLU",
        VocabularyProjection: "loss", nn.Embedding: "embedding",
    }  # fmt: skip
    functions = {(blocks, "rotate"): "rotary positions", (layouts, "attend"): "attention"}
    originals = {place: getattr(*place) for place in functions}

    def mark(function: Any, part: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if torch.compiler.is_compiling():
                return function(*arguments, **options)
            with record_function(_MARK + part):
                return function(*arguments, **options)

        return call

    marked = [module for module in model.modules() if type(module) in modules]
    for module in marked:
        module.forward = mark(module.forward, modules[type(module)])  # type: ignore[method-assign]
    for place, part in functions.items():
        setattr(*place, mark(originals[place], part))
    yield
    for module in marked:
        del module.forward
    for place, function in originals.items():
        setattr(*place, function)


def find_part(event: Any, forward_parts: dict[int, str]) -> str:
    """Return the part of the model that an operation belongs to."""
    part, ancestor = "other", event
    while ancestor is not None:
        if ancestor.name.startswith(_MARK):
            part = ancestor.name.removeprefix(_MARK)
            break
        named = [found for sign, found in _BY_NAME.items() if sign in ancestor.name]
        if named:
            part = named[0]
            break
        if ancestor.name.startswith("autograd::") and ancestor.sequence_nr in forward_parts:
            part = forward_parts[ancestor.sequence_nr]
            break
        ancestor = ancestor.cpu_parent
    if event.name in PRODUCTS and part not in ("attention", "loss"):
        return "matrix products"
    return part


def is_backward(event: Any) -> bool:
    while event is not None:
        if event.name.startswith("autograd::"):
            return True
        event = event.cpu_parent
    return False


def sum_up(events: list[Any], device: torch.device) -> tuple[dict[str, list[float]], float]:
    """Forward and backward seconds of every part, and the operations of its matrix products."""
    # The kernels of a GPU are listed a second time by themselves, and marked ranges as well.
    events = [event for event in events if event.device_type == DeviceType.CPU]
    forward_parts: dict[int, str] = {}
    for event in events:
        if event.sequence_nr >= 0 and not is_backward(event):
            part = find_part(event, {})
            # The outermost operation comes first, the marked one inside it says more.
            if part != "other" or event.sequence_nr not in forward_parts:
                forward_parts[event.sequence_nr] = part
    seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    operations = 0.0
    for event in events:
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        part = find_part(event, forward_parts)
        seconds[part][is_backward(event)] += own / 1e6
        if event.name in PRODUCTS and part == "matrix products":
            factors = event.input_shapes[1:3] if event.name == "aten::addmm" else event.input_shapes
            (rows, inner), (_, columns) = factors[:2]
            operations += 2 * rows * inner * columns
    return seconds, operations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_model_arguments(parser)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--precision", choices=DTYPES, default="bf16")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=3, help="to profile")
    parser.add_argument("--trace", help="file for the trace")
    arguments = parser.parse_args()
    device, dtype = find_device(World()), DTYPES[arguments.precision]
    torch.set_num_threads(arguments.threads)
    shape = Shape(arguments.depth, arguments.width, arguments.vocab)
    sample = move(make_sample(arguments.tokens, arguments.context, 4, shape.vocab_size), device)
    backend = choose_backend(arguments.attention, device, dtype)
    model, step = build_ours(shape, device, dtype, backend, arguments.compile)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with marked_parts(model):
        for _ in range(2):
            step(sample)
            model.zero_grad()
        with profile(activities=activities, record_shapes=True) as profiler:
            for _ in range(arguments.steps):
                step(sample)
                model.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
    seconds, operations = sum_up(list(profiler.events()), device)
    total = sum(map(sum, seconds.values()))
    batch = sample.packed
    flops = NeoBERTCost(shape.to_config(), shape.vocab_size).size.compute_flops(
        batch.num_tokens, batch.squared_lengths, batch.num_targets
    )
    peak = find_peak_flops(device, dtype)
    print(f"{shape.depth} x {shape.width}, {arguments.precision}, {backend}, "
          f"{'compiled' if arguments.compile else 'eager'}: {batch.num_tokens:,} tokens, "
          f"{total / arguments.steps:.3f} s a step\n")  # fmt: skip
    print("| part | forward s | backward s | share |\n| :-- | --: | --: | --: |")
    for part, (forward, backward) in sorted(seconds.items(), key=lambda item: -sum(item[1])):
        share = (forward + backward) / total
        forward, backward = forward / arguments.steps, backward / arguments.steps
        print(f"| {part} | {forward:.3f} | {backward:.3f} | {share:.1%} |")
    rate = operations / sum(seconds["matrix products"])
    used = flops * arguments.steps / total
    shares = [f"{x / peak:.0%} of the peak" if peak and x <= peak else "" for x in (rate, used)]
    print(f"\nmatrix products  {format_flops(rate)} {shares[0]}")
    print(f"whole step       {format_flops(used)} {shares[1]}")
    if arguments.trace:
        profiler.export_chrome_trace(arguments.trace)


if __name__ == "__main__":
    main()
