"""`python -m neobert_train.report RUN_DIR` draws a run's report.html again; several are compared."""

import sys

from neobert_train.errors import EXIT_INPUT, InputError
from neobert_train.report.comparison import write_comparison
from neobert_train.report.render import write_report
from neobert_train.run.directory import RunDirectory
from neobert_train.terminal import print_message, print_output

if __name__ == "__main__":
    runs = [RunDirectory(argument) for argument in sys.argv[1:]]
    try:
        if len(runs) == 1:
            write_report(runs[0])
        elif runs:
            print_output(f"{len(runs)} runs are laid over each other in {write_comparison(runs)}")
        else:
            sys.exit("usage: python -m neobert_train.report RUN_DIR [RUN_DIR ...]")
    except InputError as error:
        print_message(f"neobert_train: {error}")
        sys.exit(EXIT_INPUT)
