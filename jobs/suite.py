r"""A suite as a Ray job: a whole table of the paper, run after run, each on all of the cluster.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/suite.py --config jobs/table1.yaml

It takes what `datadream suite` takes, and ends as jobs/run.py does: 1 where runs failed, which are named while the
others go on. A job of the same command does what is missing.
"""

import sys

from datadream.cli import main

sys.exit(main(["suite", *sys.argv[1:]], ends_process=True))
