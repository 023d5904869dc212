"""`python -m neobert_train.report RUN_DIR` draws a run's report.html again."""

import sys

from neobert_train.errors import EXIT_INPUT, InputError
from neobert_train.report.render import write_report
from neobert_train.run.directory import RunDirectory
from neobert_train.terminal import print_message

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m neobert_train.report RUN_DIR")
    try:
        write_report(RunDirectory(sys.argv[1]))
    except InputError as error:
        print_message(f"neobert_train: {error}")
        sys.exit(EXIT_INPUT)
