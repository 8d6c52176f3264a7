"""Whether generated images help: accuracy with and without them on real pictures of sets.yaml, paired by seed.

    python -m benchmarks.effect RUNS --part development --shots 1 4 --seeds 0 1 2     # RUNS keeps all: it goes on
    python -m benchmarks.effect RUNS generate.guidance_scale=3.0 --name guided --set chess

A seed varies shots, generator and classifier together. Every arm takes the same number of the optimiser's steps and,
with --search, chooses its knobs by the same search. Prints a table in Markdown, and as the last line one JSON object,
which RUNS/NAME.json keeps.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.compare import machine
from benchmarks.effect.fetch import SETS, fetch
from benchmarks.effect.table import VOTES, markdown, summary
from datadream import Experiment, recipes
from datadream.config import ExperimentConfig
from datadream.report.judged import voted
from datadream.run.layout import INTAKE, STAGES, StageSeconds, stage_seconds
from datadream.runtime.session import connected

ARMS = ("zero-shot", "gda-real", "real", "synthetic", "gda-real+synthetic", "real+synthetic")
SEARCH = {"classify.search.learning_rates": [3e-4, 1e-3, 3e-3]}
"""What --search chooses from, for each arm on its own."""


def config_of(photos: Path, shots: int, seeds: list[int], changes: dict[str, Any]) -> ExperimentConfig:
    fixed = {"data.source": str(photos), "data.n_shots": shots, "classify.settings": ARMS, "grid.seeds": seeds}
    return recipes.laptop(**fixed).updated(changes)


def network_evaluations(config: ExperimentConfig, n_classes: int) -> dict[str, int]:
    """Images that the UNet sees for one seed: forwards and backwards of training, forwards of generating."""
    adapters = {"datadream-cls": n_classes, "datadream-mix": n_classes, "datadream-dset": 1}.get(config.method, 0)
    steps = config.adapt.steps_per_class * (n_classes if adapters == 1 else 1)
    # Guidance asks for every image twice.
    passes = config.generate.steps * (2 if config.generate.guidance_scale > 1 else 1)
    generated = 0 if config.method == "none" else n_classes * config.generate.images_per_class * passes
    return {"training": adapters * steps * config.adapt.batch_size, "generating": generated}


def votes(experiment: Experiment) -> list[dict[str, Any]]:
    """top1 of what `predict --setting real,real+synthetic` and the like take, by the logits that the runs keep; a row
    for each seed and vote."""
    # In a table the baselines are a run of their own.
    stores = {
        (cell.config.seed, each): cell.store for cell in experiment.cells for each in cell.config.classify.settings
    }
    made = []
    for seed in sorted({seed for seed, _ in stores}):
        for name, voters in VOTES.items():
            found = voted([(stores[seed, voter], voter) for voter in voters])
            if found is None:
                raise RuntimeError(
                    f"{experiment.store.url}: the classifiers of seed {seed} have no test photos in common."
                )
            made.append({"seed": seed, "setting": name, "top1": 100 * float(found.hits.mean())})
    return made


def measure(name: str, experiment: Experiment) -> list[dict[str, Any]]:
    """Run what is missing; a row for each seed and arm, with what was taken of the pictures and what it cost."""
    records, store = experiment.run(), experiment.store
    told = experiment.cells[0].store.read_json(INTAKE)
    counts = {use: sum(each[use] for each in told["classes"]) for use in ("found", "shots", "val", "test")}
    intake = {"classes": len(told["classes"]), **counts, "left_out": told["left_out"]}
    seconds = {stage: StageSeconds.from_json(store.read_json(stage_seconds(stage))).seconds for stage in STAGES}
    evaluations = network_evaluations(experiment.config, intake["classes"])
    shared = {"set": name, "shots": experiment.config.data.n_shots, "intake": intake}
    shared |= {"cost": {"unet_images_per_seed": evaluations, "seconds": seconds}}
    keys = ("seed", "setting", "top1", "n_val", "val_top1", "chosen_by")
    rows = [{key: record[key] for key in keys} for record in records]
    return [shared | row for row in [*rows, *votes(experiment)]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--name", default="laptop", help="what the changed knobs are called")
    parser.add_argument("--part", choices=("development", "confirmation"), default="development")
    parser.add_argument("--set", choices=SETS, action="append", dest="sets", help="some of the part's sets")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--search", action="store_true", help="every arm chooses its learning rate")
    parser.add_argument("changes", nargs="*", metavar="KNOB=VALUE", help="knobs that differ from the recipe `laptop`")
    arguments = parser.parse_args()
    changes = dict(SEARCH) if arguments.search else {}
    changes |= {knob: yaml.safe_load(value) for knob, _, value in (text.partition("=") for text in arguments.changes)}
    names = [name for name in SETS if SETS[name]["part"] == arguments.part and name in (arguments.sets or SETS)]
    if not names:
        parser.error(f"--set {', '.join(arguments.sets)} is not of part {arguments.part}: add the other --part.")
    photos = arguments.runs / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    with connected(recipes.laptop(**changes).cluster):  # one Ray for all
        for shots in arguments.shots:
            for name in names:
                config = config_of(fetch(name, photos), shots, arguments.seeds, changes)
                run = arguments.runs / arguments.name / f"{name}-k{shots}"
                try:
                    rows += measure(name, Experiment(config, str(run)))
                except (ValueError, RuntimeError) as error:
                    failed[run.name] = str(error)
                result = {
                    "benchmark": "effect",
                    "name": arguments.name,
                    "part": arguments.part,
                    "date": time.strftime("%Y-%m-%d"),
                    "machine": machine(),
                    "changes": changes,
                    "summary": summary(rows),
                    "failed": failed,
                    "rows": rows,
                }
                (arguments.runs / f"{arguments.name}.json").write_text(json.dumps(result, indent=1))
    print(markdown(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
