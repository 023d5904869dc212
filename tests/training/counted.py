"""neobert_train that says, before it collects a step, what the one before did.

Which collectives it called, and whether torch's compiler is loaded by now.
"""

import sys

from neobert_train.__main__ import main
from neobert_train.distributed import Collectives
from neobert_train.training import trainer

NAMES = ("sum", "sum_floats", "broadcast", "gather", "on_main", "on_all", "barrier")
called: list[str] = []


def note_calls(name):
    method = getattr(Collectives, name)

    def noted(*arguments):
        called.append(name)
        return method(*arguments)

    setattr(Collectives, name, noted)


def collect_and_tell(*arguments):
    print(f"called: {' '.join(called)}", flush=True)
    print(f"compiler: {'torch._inductor.compile_fx' in sys.modules}", flush=True)
    called.clear()
    return collect_step(*arguments)


if __name__ == "__main__":
    for name in NAMES:
        note_calls(name)
    collect_step, trainer.collect_step = trainer.collect_step, collect_and_tell
    main()
