"""What a comparison will take, before any of it is spent."""

import math

from neobert_train.evaluation.comparison import Comparison
from neobert_train.evaluation.tasks import LabelledTask
from neobert_train.machine.peak import DEVICES

# What fine-tuning with short rows reaches of the peak: an assumption.
MFU = 0.3
_DEVICE = "h100"
# With fewer steps of fine-tuning hardly any encoder learns a task.
_FEW_STEPS = 100


def format_plan(comparison: Comparison) -> str:
    """Return how many cells there are, how many are left, and the hours of a GPU for them."""
    lines = [f"{'task':24} {'cells':>7} {'left':>7} {'GPU-hours left':>15}"]
    cells_in_all = left_in_all = 0
    hours_in_all = 0.0
    device = DEVICES[_DEVICE]
    peak = device.get_flops(comparison.conditions.bf16)
    for task in comparison.tasks:
        cells = left = 0
        flops = 0.0
        for candidate in comparison.candidates:
            settings = task.list_settings()
            count = len(settings) * len(task.seeds)
            known = comparison.list_cells(task, candidate)
            done = sum(
                1
                for cell in known
                if (found := comparison.store.load(cell)) is not None and not found.error
            )
            mean = sum(task.estimate_flops(candidate, each) for each in settings) / len(settings)
            cells, left, flops = cells + count, left + count - done, flops + mean * (count - done)
        hours = flops / (MFU * peak) / 3600
        lines.append(f"{task.name:24} {cells:7,} {left:7,} {hours:15.2g}")
        cells_in_all, left_in_all = cells_in_all + cells, left_in_all + left
        hours_in_all += hours
    lines.append(f"{'in all':24} {cells_in_all:7,} {left_in_all:7,} {hours_in_all:15.2g}")
    form = "bf16" if comparison.conditions.bf16 else "fp32"
    lines.append(
        f"hours are of one {device.name} in {form} at {MFU:.0%} of its peak, 6 operations a parameter and "
        f"token of training; early stopping ends sooner"
    )
    return "\n".join([*lines, *warn_of_few_steps(comparison)])


def warn_of_few_steps(comparison: Comparison) -> list[str]:
    """Return a warning for every task that is fine-tuned for so few steps that it is hardly learned."""
    warnings = []
    for task in comparison.tasks:
        settings = task.list_settings()
        if not isinstance(task, LabelledTask):
            continue
        counts = task.count_examples()
        most = max(counts.get("steps", [_FEW_STEPS]))
        if most >= _FEW_STEPS or any(most == each["max_steps"] for each in settings):
            continue
        epochs = math.ceil(_FEW_STEPS / most) * max(each["epochs"] for each in settings)
        warnings.append(
            f"{task.name} is fine-tuned for {most} steps on {counts['training_examples']:,} examples, "
            f"which teaches little: write {task.suggest_epochs(epochs)}, or preset=probe"
        )
    return warnings
