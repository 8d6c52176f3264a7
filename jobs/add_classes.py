"""Classes whose photos have come since a run's first start, added to what it has made: only they are trained.

    python jobs/add_classes.py OLD NEW

NEW is a run of its own with the classes of OLD and the new ones; OLD stays as it is. As `datadream run --run NEW
--extend OLD`.
"""

import sys

from datadream import Experiment
from datadream.run.config_record import config_extending
from datadream.run.layout import FEW_SHOT
from datadream.run.store import RunStore

if __name__ == "__main__":
    old, new = sys.argv[1:3]
    experiment = Experiment(config_extending(RunStore(old)), new)
    experiment.check()
    n_old = len(RunStore(old).read_json(FEW_SHOT)["classes"])
    print("new:", ", ".join(experiment.cells[0].few_shot.class_names[n_old:]), flush=True)
    for record in experiment.run():
        print(record["setting"], record["top1"])
