"""Named, complete configs. A recipe is a function that returns one; its keywords change knobs.

recipes.digits(seed=3, data={"n_shots": 16})

Beside these, every row of the papers' tables is one (see `paper.reproductions`).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from datadream.config import ExperimentConfig, flatten, nearest, public_config, public_dataset
from datadream.paper import load_tables
from datadream.paper.reproductions import below, in_short, reported, reproductions

PLAIN = re.compile(r"[A-Za-z][\w./-]*")
"""Text that YAML takes for text."""

# The backbone inside the package: nothing is downloaded, and a CPU trains it in minutes.
TINY = {
    "diffusion.model": "package://datadream.models.tiny/diffusion",
    "diffusion.resolution": 32,
    "classify.model": "package://datadream.models.tiny/clip",
    "classify.pretrained": None,
}


def digits(**changes: Any) -> ExperimentConfig:
    """Scanned handwritten digits with the embedded tiny backbone: the whole method on a laptop CPU in minutes."""
    knobs = TINY | {
        "data.source": "digits",
        "data.n_shots": 4,
        "adapt.steps_per_class": 150,
        # From 5e-3 on a prototype's adapters lost their classes.
        "adapt.learning_rate": 2e-3,
        "adapt.warmup_steps": 10,
        "generate.images_per_class": 200,
        # FID 15.9 and 94 % of images whose class is recognised, where 50 steps of DDIM have 15.5 and 94 %.
        "generate.steps": 12,
        "generate.scheduler": "DPMSolverMultistepScheduler",
        "classify.alpha": 16.0,
        # The authors adapt q and v. All four, with the milder augmentation below, were worth 4 to 5 points on a seed.
        "classify.projections": ["q", "k", "v", "out"],
        "classify.lora_dropout": 0.0,
        "classify.steps": 300,
        "classify.learning_rate": 1e-3,
        "classify.warmup_steps": 20,
        "classify.eval_every": 50,
        # A scan is a square of the CLIP's input: the same images as from "photo", and earlier runs go on.
        "classify.augment.crop_from": "square",
        # Milder changes than the paper's: a scan has 8 x 8 grey pixels.
        "classify.augment.crop_scale": [0.75, 1.0],
        "classify.augment.rotation": 12.0,
        "classify.augment.color_jitter": 0.1,
        "classify.augment.grayscale": 0.0,
    }
    return ExperimentConfig().updated(knobs).updated(changes)


def laptop(**changes: Any) -> ExperimentConfig:
    """Your own pictures with the embedded tiny backbone, on any laptop and without downloads: set data.source.

    It has seen letters, digits and drawings of 5,900 things, at 32 x 32 pixels: enough to try everything, and for
    signs and drawings. For photographs take `paper`; for characters the backbone of `digits` reads better.
    """
    pictures = {
        # With one photo its images add 4.1 +- 1.4 points, those of datadream-cls cost 1.2 +- 1.0 (RESULTS.md).
        "method": "datadream-mix",
        "diffusion.model": "package://datadream.models.tiny/pictures/diffusion",
        "classify.model": "package://datadream.models.tiny/pictures/clip",
        "adapt.steps_per_class": 100,
        "generate.images_per_class": 100,
        "classify.augment.crop_from": "photo",
        "classify.augment.rotation": 0.0,
        "classify.augment.color_jitter": 0.4,
    }
    return digits(**pictures).updated(changes)


def digits_table(**changes: Any) -> ExperimentConfig:
    """The shape of the paper's table 1 on digits: four methods, three seeds, beside zero-shot and real photos.

    Its classifiers train twice as long as those of `digits`, which has five minutes for everything.
    """
    table = {
        "classify.steps": 600,
        "grid.methods": ["zero-shot", "is-synth", "datadream-cls", "datadream-dset"],
        "grid.seeds": [0, 1, 2],
    }
    return digits(**table).updated(changes)


def digits_curve(**changes: Any) -> ExperimentConfig:
    """Accuracy over the number of generated images, as the paper's figure 5 (left): generated once, three seeds.

    The figure's right half is over shots: grid.n_shots=[1,2,4,8,16] grid.images_per_class=[].
    """
    curve = {"classify.steps": 600, "grid.seeds": [0, 1, 2], "grid.images_per_class": [10, 25, 50, 100, 200]}
    return digits(**curve).updated(changes)


# What the paper says of settings and baselines, and where it is silent the authors' code (docs/fidelity.md).
DISEF = {
    # 20 steps from the fifth on.
    "generate.scheduler": "DPMSolverMultistepScheduler",
    "generate.steps": 20,
    "generate.strength": 0.75,
    "generate.guidance_scale": 8.0,
    "generate.fit": "pad",
}
# The paper ran it on DISEF's code.
IS_SYNTH = DISEF | {"generate.shot_order": "random"}
# LoFT's code: 600 steps for each photo.
LOFT = {
    "adapt.rank": 2,
    "adapt.text_encoder": False,
    "adapt.epochs": 600,
    "adapt.batch_size": 1,
    "adapt.learning_rate": 1e-3,
    "adapt.warmup_steps": 10,
}
OF_METHOD: dict[str, dict[str, Any]] = {"is-synth": IS_SYNTH, "disef": DISEF, "loft": LOFT}
"""What other methods train and sample with where it is not what DataDream does."""
IMAGENET_DSET = {"adapt.epochs": 100}
SEARCH = {
    "classify.search.learning_rates": [1e-4, 1e-5, 1e-6, 1e-7],
    "classify.search.weight_decays": [5e-4, 1e-4],
    "classify.search.mixes": ["none", "both"],
    "classify.search.grace": 1.0,
}
AUGMENT = {
    "classify.augment.flip": True,
    "classify.augment.crop_scale": [0.25, 1.0],
    "classify.augment.interpolation": "bicubic",
    "classify.augment.color_jitter": 0.4,
    "classify.augment.saturation_jitter": 0.2,
    "classify.augment.hue_jitter": 0.1,
    "classify.augment.jitter_share": 0.8,
    "classify.augment.grayscale": 0.2,
}
IN_CODE_ALONE = {
    "classify.augment.rand_augment": 2,
    "classify.augment.blur": 0.2,
    "classify.augment.solarize": 0.2,
}


def paper(**changes: Any) -> ExperimentConfig:
    """The paper's settings, Stable Diffusion 2.1 and CLIP ViT-B/16, for your own photos: set data.source.

    Each classifier is chosen among 16 combinations of knobs on validation photos, all trained to the end:
    classify.search.grace=0.1 gives the worse ones up early. It mirrors half of the classifier's images, as the paper
    does; set classify.augment.flip=false where left and right matter. With method=is-synth images are sampled as the
    paper sampled its baseline, and with loft and disef as their authors do. With data.dataset=imagenet datadream-dset
    takes half of the epochs, as in the paper.
    """
    return _as_published(SEARCH, changes)


def paper_code(**changes: Any) -> ExperimentConfig:
    """The authors' scripts as they are shipped: beside `paper`, RandAugment, blur and solarisation, and no search.

    With data.dataset, prompts say what a data set shows: "a texture photo of a {name}". The authors choose weights on
    test photos, which is not copied: classify.select_on=test does it.
    """
    own: dict[str, Any] = IN_CODE_ALONE
    if (name := flatten(changes).get("data.dataset")) is not None:
        from datadream.data.known import KNOWN  # here, for it reads photos, and a list of recipes does not

        # Of an unknown name the config says what it expects.
        own = own | ({"data.prompt": KNOWN[name].prompt} if name in KNOWN else {})
    return _as_published(own, changes)


def _as_published(own: dict[str, Any], changes: dict[str, Any]) -> ExperimentConfig:
    settings = {"data.n_shots": 16, "generate.images_per_class": 500, "adapt.epochs": 200, "classify.epochs": 10}
    given = flatten(changes)
    method, dataset = given.get("method"), given.get("data.dataset")
    of_method = OF_METHOD.get(str(method), {})
    if (method, dataset) == ("datadream-dset", "imagenet"):
        of_method = IMAGENET_DSET
    return ExperimentConfig().updated(settings | AUGMENT | own | of_method).updated(changes)


RECIPES: dict[str, Callable[..., ExperimentConfig]] = {
    "digits": digits,
    "laptop": laptop,
    "digits-table": digits_table,
    "digits-curve": digits_curve,
    "paper": paper,
    "paper-code": paper_code,
}


def command(config: ExperimentConfig) -> str:
    """The shortest `datadream run` that gives this config, with locations by their public names."""
    shown = flatten(public_config(config))
    changes = {}
    likely = [
        name
        for name, each in reproductions().items()
        if (each.dataset, each.knobs.get("method")) == (public_dataset(config.data), config.method)
    ]
    # A recipe may have other knobs for a method or a data set, and gives them to the command that names it.
    named = {"method": config.method, "data.dataset": config.data.dataset}
    for name in (*RECIPES, *likely):
        plain, own = (flatten(public_config(recipe)) for recipe in (by_name(name), by_name(name, named)))
        changes[name] = {
            key: value for key, value in shown.items() if own[key] != value or (key in named and plain[key] != value)
        }
    recipe = min(changes, key=lambda name: len(changes[name]))
    # JSON is YAML, which the command line reads; plain names go without its quotes.
    plain = {key: isinstance(value, str) and PLAIN.fullmatch(value) for key, value in changes[recipe].items()}
    words = [
        f"{key}={value if plain[key] else json.dumps(value, ensure_ascii=False)}"
        for key, value in changes[recipe].items()
    ]
    return shlex.join(["datadream", "run", "--recipe", recipe, *words])


def by_name(name: str, changes: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """A recipe's config with changes; raises ValueError for an unknown name."""
    if name in RECIPES:
        return RECIPES[name](**(changes or {}))
    if name in reproductions():
        row = reproductions()[reproductions()[name].run]
        return RECIPES[row.base](**row.knobs).updated(dict(changes or {}))
    known = [*RECIPES]
    if "/" in name:  # also what is above the rows, for a mistake in a table's name is none in that of a row
        known += dict.fromkeys(
            str(name) for row in reproductions() for name in (row, *PurePosixPath(row).parents) if str(name) != "."
        )
    raise ValueError(f"unknown recipe {name!r}. {nearest(name, known)}".strip())


def listing(name: str = "") -> str:
    """The recipes in words: in short, or those at and below a name with what the papers report.

    Raises ValueError for a name that there is not.
    """
    if not name:
        lines = {key: (made.__doc__ or "").splitlines()[0] for key, made in RECIPES.items()} | in_short()
        notes = ["`datadream recipes paper/table1` lists the rows of a table with the paper's figures."]
    elif name in RECIPES:
        return (RECIPES[name].__doc__ or "").strip()
    else:
        rows = below(name.strip("/"))
        if not rows:
            by_name(name)
        lines = {key: reported(each) for key, each in rows.items()}
        tables = {each.table: load_tables()[each.table] for each in rows.values() if each.base != each.dataset}
        notes = [f"{table.source}: {table.protocol}" for table in tables.values()]
    width = max(map(len, lines)) + 2
    return "\n".join([*(f"{key:<{width}}{text}".rstrip() for key, text in lines.items()), "", *notes]).rstrip()
