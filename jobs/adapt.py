"""A run as a Ray job, up to its adapters: as jobs/run.py, and a later job goes on from them."""

import sys

from datadream.cli import main

sys.exit(main(["run", "--until", "adapt", *sys.argv[1:]], ends_process=True))
