"""A run as a Ray job, up to its dataset: as jobs/run.py, and a later job goes on from it."""

import sys

from datadream.cli import main

sys.exit(main(["run", "--until", "generate", *sys.argv[1:]], ends_process=True))
