"""`python -m neobert_train.report RUN_DIR` draws a run's report.html again; several are compared."""

import sys

from neobert_train.errors import EXIT_INPUT, InputError
from neobert_train.report.comparison import write_comparison
from neobert_train.report.render import write_report
from neobert_train.run.directory import RunDirectory
from neobert_train.terminal import print_message, print_output

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not arguments or arguments[0].startswith("-h") or "--help" in arguments:
        sys.exit("usage: python -m neobert_train.report RUN_DIR [RUN_DIR ...]")
    runs = [RunDirectory(argument) for argument in arguments]
    try:
        for run in runs:
            if not run.config_file.exists():
                raise InputError(f"{run.path} is no run directory: it holds no config.yaml")
        if len(runs) == 1:
            write_report(runs[0])
        else:
            print_output(f"{len(runs)} runs are laid over each other in {write_comparison(runs)}")
    except InputError as error:
        print_message(f"neobert_train: {error}")
        sys.exit(EXIT_INPUT)
