"""`python -m neobert_train.report RUN_DIR` draws a run's report.html again."""

import sys

from neobert_train.report.render import write_report
from neobert_train.run_directory import RunDirectory

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m neobert_train.report RUN_DIR")
    write_report(RunDirectory(sys.argv[1]))
