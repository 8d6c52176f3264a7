"""Training and testing a classifier: ours against what the authors' code does for each step and each evaluation.

    python -m benchmarks.classify                            # a tiny image tower of 17 tokens; minutes on 2 CPU cores
    python -m benchmarks.classify --image-size 56 --patch 4  # image and text tower in proportion as in ViT-B/16
    python -m benchmarks.classify --device cuda --shapes sd21  # ViT-B/16; `python -m benchmarks.gpu` measures more

A random CLIP of 12 + 12 layers, prompts of ImageNet's class names, the same images and first weights in both arms,
which know no dropout; our step with it is timed beside them. The last line is one JSON object: arms, median ratios
with their 95 % intervals, counters.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from benchmarks.compare import interleaved, machine, milliseconds, speedup
from benchmarks.plain_classify import PlainClassifier
from benchmarks.shapes import MEAN, SHAPES, STD, add_arguments, random_clip
from datadream.classify.evaluate import count_correct
from datadream.classify.ingest.batches import LabelledImages
from datadream.classify.schedule import schedule_for
from datadream.classify.train_state import Part, Training, autocast_of
from datadream.config import AugmentConfig, ClassifyConfig
from datadream.data.augment import Augment
from datadream.models.clip.load import ClipModel
from datadream.models.clip.trainable import make_trainable, trainable_state

LORA = {"rank": 16, "alpha": 32.0}
RATE = 1e-4
"""A first step of AdamW moves a weight by about as much: ten times TOLERANCE."""
BATCH = 64
"""The paper's."""
EVAL_BATCH = 256
"""Images of ours at once; the plain arm's are its own."""
DROPOUT = 0.1
"""The authors' rate, of which our step is timed as well."""
UNCHANGED = AugmentConfig(crop_scale=(1, 1), crop_ratio=(1, 1), color_jitter=0, grayscale=0)
TOLERANCE = 1e-5
"""Largest difference of a trained weight between the arms, after one step."""


def narrow_clip(image_size: int, patch: int, layers: int = 12, device: str = "cpu") -> ClipModel:
    """The tiny shapes, with other images or fewer layers."""
    config = SHAPES["tiny"].clip
    vision = config["vision_cfg"] | {"image_size": image_size, "patch_size": patch, "layers": layers}
    text = config["text_cfg"] | {"layers": layers}
    return random_clip({**config, "vision_cfg": vision, "text_cfg": text}, device)


class Arms:
    """Both arms on the same random images of `n_classes`, on the device of the CLIP."""

    def __init__(self, clip: ClipModel, n_classes: int, n_images: int, batch_size: int = BATCH) -> None:
        """`batch_size` images for a step, `n_images` for an evaluation."""
        names = open_clip.IMAGENET_CLASSNAMES[:n_classes]
        self.device = clip.model.logit_scale.device
        self.tokens = clip.tokenizer([f"a photo of a {name}" for name in names]).to(self.device)
        rng = torch.Generator().manual_seed(1)
        shape = (max(n_images, batch_size), 3, clip.size, clip.size)
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=rng).to(self.device)
        labels = torch.randint(n_classes, shape[:1], generator=rng).to(self.device)
        normalised = (pixels / 255 - 0.5) / 0.5
        self.batch = LabelledImages(pixels[:batch_size], labels[:batch_size])
        self.plain_batch = normalised[:batch_size], labels[:batch_size]
        self.photos = normalised[:n_images], labels[:n_images]
        self.clip = copy.deepcopy(clip)
        make_trainable(self.clip.model, **LORA, projections=("q", "v"), seed=0)
        self.plain = PlainClassifier(copy.deepcopy(clip.model), trainable_state(self.clip.model), **LORA, rate=RATE)
        self._augment = Augment(UNCHANGED, False, clip.size, MEAN, STD)
        self._trainings: dict[tuple[float, str], Training] = {}

    def plain_step(self) -> float:
        return self.plain.step(*self.plain_batch, self.tokens)

    def our_step(self, lora_dropout: float = 0.0, precision: str = "auto") -> float:
        key = lora_dropout, precision
        if key not in self._trainings:
            self._trainings[key] = self._start(*key)
        self._trainings[key].step()
        return self._trainings[key].mean_loss()

    def _start(self, lora_dropout: float, precision: str) -> Training:
        n = len(self.batch)
        knobs = {"batch_size": n, "learning_rate": RATE, "weight_decay": 0, "warmup_steps": 0}
        config = ClassifyConfig(**knobs, steps=10**6, lora_dropout=lora_dropout, precision=precision)
        parts = [Part(lambda step: itertools.repeat(self.batch), n, 1.0)]
        return Training(self.clip, self.tokens, parts, self._augment, config, schedule_for(config, n_images=0), seed=0)

    def our_dropped_step(self) -> float:
        return self.our_step(DROPOUT)

    def plain_evaluation(self) -> int:
        return self.plain.count_correct(*self.photos, self.tokens)

    def our_evaluation(self, precision: str = "auto") -> int:
        batches = zip(*(tensor.split(EVAL_BATCH) for tensor in self.photos), strict=True)
        counts = count_correct(self.clip, self.tokens, batches, autocast_of(precision, self.device))
        return int(counts[0])

    def check_equal(self) -> Checked:
        """One step and one evaluation of each arm, with what they took.

        Raises ValueError when losses, weights or hits differ by more than rounding; on a GPU, whose rounding is not
        known yet, it is only told.
        """
        models = {"plain": self.plain.model, "ours": self.clip.model}
        with counted(models) as step:
            losses = self.plain_step(), self.our_step(precision="fp32")
        ours, plain = trainable_state(self.clip.model), self.plain.state()
        worst = max(float((ours[name] - plain[name]).abs().max()) for name in ours)
        with counted(models) as evaluation:
            hits = self.plain_evaluation(), self.our_evaluation("fp32")
        on_cpu = self.device.type == "cpu"
        if on_cpu and (abs(losses[0] - losses[1]) > TOLERANCE * losses[0] or worst > TOLERANCE or hits[0] != hits[1]):
            raise ValueError(f"the arms differ: losses {losses}, a weight by {worst:.1e}, hits {hits}.")
        counters = {name: {"step": dict(step[name]), "evaluation": dict(evaluation[name])} for name in models}
        return Checked(abs(losses[0] - losses[1]) / losses[0], worst, hits, counters)


@dataclass(frozen=True, slots=True)
class Checked:
    """What two arms that agree differ in."""

    loss_difference: float
    """Relative, of a step."""
    largest_weight_difference: float
    """After the step."""
    hits: tuple[int, int]
    """Photos that the plain arm and ours recognise."""
    counters: dict[str, dict[str, dict[str, int]]]
    """Work by arm, then by what it was done for: a step or an evaluation."""


@contextmanager
def counted(models: Mapping[str, nn.Module]) -> Iterator[dict[str, Counter[str]]]:
    """Counts for each model, while the block runs: tokens through the first block of the text tower (a recomputed one
    again), runs of that tower, and images through the image tower."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in models}
    with ExitStack() as hooks:
        for name, model in models.items():
            for module, unit, size in (
                (model.transformer.resblocks[0].ln_1, "text_tokens", lambda x: x.shape[:-1].numel()),
                (model.ln_final, "text_passes", lambda x: 1),
                (model.visual.ln_pre, "images", len),
            ):
                hook = partial(_count, counts[name], unit, size)
                hooks.enter_context(module.register_forward_pre_hook(hook))
        yield counts


def _count(
    counts: Counter[str], unit: str, size: Callable[[Tensor], int], module: nn.Module, inputs: tuple[Tensor]
) -> None:
    counts[unit] += size(inputs[0])


def measure(clip: ClipModel, n_classes: int, n_images: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step and of an evaluation of each arm, once both are known to do the same, and of our step
    with dropout."""
    arms = Arms(clip, n_classes, n_images)
    result: dict[str, Any] = asdict(arms.check_equal())
    # The check has warmed the others up.
    arms.our_dropped_step()
    steps = {"plain": arms.plain_step, "ours": arms.our_step, "ours_dropped": arms.our_dropped_step}
    evaluations = {"plain": arms.plain_evaluation, "ours": arms.our_evaluation}
    for work, timed in (("step", steps), ("evaluation", evaluations)):
        seconds = interleaved(timed, rounds, warm_up=0)
        result[work] = {f"{name}_ms": milliseconds(calls) for name, calls in seconds.items()}
        result[work]["ratio"] = speedup(seconds["plain"], seconds["ours"])
        if "ours_dropped" in seconds:
            result[work]["dropped_to_ours"] = speedup(seconds["ours_dropped"], seconds["ours"])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--images", type=int, default=32, help="images of an evaluation")
    parser.add_argument("--image-size", type=int, default=32, help="pixels, of the tiny shapes")
    parser.add_argument("--patch", type=int, default=8, help="pixels, of the tiny shapes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of every arm")
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.shapes == "tiny":
        clip = narrow_clip(arguments.image_size, arguments.patch, device=arguments.device)
    else:
        clip = SHAPES[arguments.shapes].classifier(arguments.device)
    result: dict[str, Any] = {
        "benchmark": "classify",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "threads": arguments.threads,
        "image_tokens": len(clip.model.visual.positional_embedding),
        "batch": BATCH,
        "images": arguments.images,
    }
    for n_classes in arguments.classes:
        result[f"classes_{n_classes}"] = measure(clip, n_classes, arguments.images, arguments.rounds)
        print(n_classes, json.dumps(result[f"classes_{n_classes}"]), flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
