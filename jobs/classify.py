"""A run as a Ray job, up to its classifiers and without the report: as jobs/run.py."""

import sys

from datadream.cli import main

sys.exit(main(["run", "--until", "classify", *sys.argv[1:]], ends_process=True))
