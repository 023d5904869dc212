"""How the threads of a matrix product wait for each other; settled before torch is imported."""

import os

# What a user or a launcher may have said about it already.
_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Rounds of waiting that keep a core busy before the thread sleeps. GNU's library spins 300,000 rounds
# by default, which is free on a quiet machine; where another program wants the same cores it took a
# step seven times as long, since threads spin that the others wait for.
_SPIN_ROUNDS = "1000"


def limit_spinning() -> None:
    """Let OpenMP threads that wait give their core away soon; a policy already set stays.

    Torch's own builds come with GNU's library; builds with LLVM's or Intel's take the second variable.
    """
    if not any(variable in os.environ for variable in _VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = _SPIN_ROUNDS
        os.environ["KMP_BLOCKTIME"] = "0"


def describe_waiting() -> str:
    """Return the settings in force, as in `GOMP_SPINCOUNT=1000`."""
    given = [f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ]
    return ", ".join(given) or "the library's own default"
