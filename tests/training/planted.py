"""neobert_train with a planted fault, FAULT, in lane 1 of the steps STEPS=3,4,...

nan, huge: of the loss. hang, die: of the process; die_evaluating in the evaluation after the step.
die_alone: while the process of lane 0 is in a call that nothing ends, as a wait for a GPU is; every
checkpoint takes six seconds. unplug: of the network of its host. slow_write: every checkpoint takes three
seconds, and each process says at its end which there are.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from neobert_train.objectives.masked_lm import MaskedLM
from neobert_train.objectives.objective import Outcome

STEPS = {int(step) for step in os.environ["STEPS"].split(",")}
compute = MaskedLM.compute
latest_step = 0


def compute_with_fault(self, batch):
    outcome = compute(self, batch)
    loss, training = outcome.loss_sum, self.encoder.network.training
    if training and batch.lane == 1 and batch.lane_state["num_batches"] in STEPS:
        match os.environ["FAULT"]:
            case "nan":
                loss = loss * float("nan")
            case "huge":
                loss = loss * 100
            case "hang":
                time.sleep(1000)
            case "die" | "die_alone":
                os.kill(os.getpid(), signal.SIGKILL)
            case "unplug":
                subprocess.run(["ip", "link", "set", "eth0", "down"], check=True)
    alone = os.environ["FAULT"] == "die_alone"
    if alone and training and batch.lane == 0 and batch.lane_state["num_batches"] in STEPS:
        ctypes.CDLL(None).sleep(1000)
    if not training and os.environ["FAULT"] == "die_evaluating" and latest_step in STEPS:
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(loss, outcome.sums)


def note_steps():
    """Let `compute_with_fault` know in an evaluation after which step it is."""
    from neobert_train.training.trainer import Trainer

    evaluate = Trainer._evaluate

    def noted(self):
        global latest_step
        latest_step = self.state.step
        return evaluate(self)

    Trainer._evaluate = noted


def write_slowly(seconds):
    from neobert_train.training import checkpoint_writer

    save_checkpoint = checkpoint_writer.save_checkpoint

    def save(*arguments):
        time.sleep(seconds)
        return save_checkpoint(*arguments)

    checkpoint_writer.save_checkpoint = save


def tell_checkpoints():
    (output_dir,) = (word[11:] for word in sys.argv if word.startswith("output_dir="))
    names = sorted(path.name for path in Path(output_dir, "checkpoints").glob("step-*"))
    print(f"rank {os.environ['RANK']} leaves {names[-1:]}", flush=True)


if __name__ == "__main__":
    from neobert_train.__main__ import main

    MaskedLM.compute = compute_with_fault
    match os.environ["FAULT"]:
        case "die_evaluating":
            note_steps()
        case "slow_write":
            write_slowly(3)
        case "die_alone":
            write_slowly(6)
    code = 0
    try:
        main()
    except SystemExit as error:
        code = error.code
    if os.environ["FAULT"] == "slow_write":
        tell_checkpoints()
    sys.stdout.flush()
    os._exit(code)  # as the program ends, whatever torch still does
