"""neobert_train with a planted fault, FAULT, in lane 1 of the steps STEPS=3,4,...

nan, huge: of the loss. hang, die: of the process; die_evaluating in the evaluation after the step.
slow_write: every checkpoint takes three seconds, and each process says at its end which there are.
"""

import os
import signal
import sys
import time
from pathlib import Path

from neobert_train.checkpoint import save_checkpoint
from neobert_train.objective import MaskedLanguageModelling
from neobert_train.training import checkpointing
from neobert_train.training.trainer import Trainer

STEPS = {int(step) for step in os.environ["STEPS"].split(",")}
forward, evaluate = MaskedLanguageModelling.forward, Trainer._evaluate
latest_step = 0


def faulty_forward(self, batch):
    loss, num_correct = forward(self, batch)
    if self.training and batch.lane == 1 and batch.lane_state["num_batches"] in STEPS:
        match os.environ["FAULT"]:
            case "nan":
                loss = loss * float("nan")
            case "huge":
                loss = loss * 100
            case "hang":
                time.sleep(1000)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
    if not self.training and os.environ["FAULT"] == "die_evaluating" and latest_step in STEPS:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss, num_correct


def note_step(self):
    global latest_step
    latest_step = self.state.step
    return evaluate(self)


def save_slowly(run, *arguments):
    time.sleep(3)
    return save_checkpoint(run, *arguments)


if __name__ == "__main__":
    from neobert_train.__main__ import main

    MaskedLanguageModelling.forward = faulty_forward
    Trainer._evaluate = note_step
    if os.environ["FAULT"] != "slow_write":
        main()
    else:
        checkpointing.save_checkpoint = save_slowly
        (output_dir,) = (word[11:] for word in sys.argv if word.startswith("output_dir="))
        try:
            main()
        finally:
            names = sorted(path.name for path in Path(output_dir, "checkpoints").glob("step-*"))
            print(f"rank {os.environ['RANK']} leaves {names[-1:]}", flush=True)
