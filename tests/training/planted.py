"""neobert_train with a fault planted in lane 1 of some steps: FAULT=nan|huge|hang|die, STEPS=3,4."""

import os
import signal
import time

from neobert_train.objective import MaskedLanguageModelling

STEPS = {int(step) for step in os.environ["STEPS"].split(",")}
forward = MaskedLanguageModelling.forward


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
    return loss, num_correct


if __name__ == "__main__":
    from neobert_train.__main__ import main

    MaskedLanguageModelling.forward = faulty_forward
    main()
