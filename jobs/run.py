r"""A run as a Ray job: every stage that is not done yet, then the report.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/run.py --config jobs/digits-smoke.yaml

It takes what `datadream run` takes, joins the cluster that it was submitted to, and ends with 0 (done), 1 (something
failed), 2 (bad input, nothing was done) or 130 (interrupted). A job of the same command goes on from there.
"""

import sys

from datadream.cli import main

sys.exit(main(["run", *sys.argv[1:]], ends_process=True))
