"""Speed and memory of encoding on a CPU, against BERT of the same depth and width.

python scripts/bench_inference.py --depth 12 --width 768 --rounds 7
"""

import argparse
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from bench_step import read_status
from torch import Tensor
from transformers import BertConfig, BertModel

from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.modeling_neobert import NeoBERT

BATCHES = ((32, 128), (8, 512), (1, 16), (1, 128))
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Case:
    """A batch to encode.

    Attributes:
        rows, length: of the ids.
        is_padded: whether rows end at random lengths from an eighth of `length` on; else all are full.
    """

    rows: int
    length: int
    is_padded: bool

    def build(self) -> tuple[Tensor, Tensor]:
        """Return ids and mask, [rows, length] each."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(1000, 9000, (self.rows, self.length), generator=generator)
        mask = torch.ones_like(ids)
        if self.is_padded:
            lengths = torch.randint(
                self.length // 8, self.length + 1, (self.rows, 1), generator=generator
            )
            mask = (torch.arange(self.length) < lengths).long()
        return ids, mask


def describe_size(depth: int, width: int) -> dict[str, int]:
    """Return the settings that both configurations have under the same names."""
    return {
        "num_hidden_layers": depth,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": width // 64,
    }


def build_ours(depth: int, width: int) -> torch.nn.Module:
    return NeoBERT(NeoBERTConfig(**describe_size(depth, width))).eval()


def build_bert(depth: int, width: int) -> torch.nn.Module:
    return BertModel(BertConfig(**describe_size(depth, width)), add_pooling_layer=False).eval()


BUILDERS: dict[str, Callable[[int, int], torch.nn.Module]] = {
    "ours": build_ours,
    "bert": build_bert,
}


@torch.inference_mode()
def encode(model: torch.nn.Module, ids: Tensor, mask: Tensor) -> float:
    """Return the seconds that encoding takes."""
    started = time.perf_counter()
    model(input_ids=ids, attention_mask=mask)
    return time.perf_counter() - started


def measure_memory(name: str, depth: int, width: int, case: Case, threads: int) -> float:
    """Return the bytes that a batch takes beside the weights; for a process of its own."""
    torch.set_num_threads(threads)
    model = BUILDERS[name](depth, width)
    encode(model, *Case(1, 8, True).build())
    before = read_status("VmRSS")
    encode(model, *case.build())
    return read_status("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--depth", type=int, default=12, help="blocks")
    parser.add_argument("--width", type=int, default=768, help="of the residual stream")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-memory", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = arguments.depth, arguments.width
    models = {name: build(*size) for name, build in BUILDERS.items()}
    processes = multiprocessing.get_context("spawn")
    print("| batch | ours, ms | bert, ms | x bert | ours, MiB | bert, MiB |")
    print("| :-- | --: | --: | --: | --: | --: |")
    for rows, length in BATCHES:
        for is_padded in (False, True) if rows > 1 else (False,):
            case = Case(rows, length, is_padded)
            batch = case.build()
            seconds: dict[str, list[float]] = {name: [] for name in models}
            for number in range(-1, arguments.rounds):  # the first only warms up
                for name in random.Random(number).sample(sorted(models), len(models)):
                    taken = encode(models[name], *batch)
                    seconds[name] += [taken] if number >= 0 else []
            ours, bert = (statistics.median(seconds[name]) for name in ("ours", "bert"))
            pairs = zip(seconds["bert"], seconds["ours"], strict=True)
            ratio = statistics.median(other / own for other, own in pairs)
            memory = []
            for name in () if arguments.no_memory else ("ours", "bert"):
                with processes.Pool(1) as pool:
                    call = (name, *size, case, arguments.threads)
                    memory.append(f"{pool.apply(measure_memory, call) / MEBIBYTE:,.0f}")
            kind = "padded" if is_padded else "full"
            cells = [f"{rows} x {length} {kind}", f"{1e3 * ours:,.1f}", f"{1e3 * bert:,.1f}"]
            print(
                "| " + " | ".join([*cells, f"{ratio:.2f}", *(memory or ["", ""])]) + " |",
                flush=True,
            )


if __name__ == "__main__":
    main()
