"""Generating images, and choosing those that are published."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from datadream.config.data import PromptTemplate
from datadream.config.section import Section, Share

Preset = Literal["exact", "fast", "turbo"]
# What generate.preset sets in the same section; speeds and accuracies are in docs/methods.md.
PRESETS: dict[Preset, dict[str, Any]] = {
    "exact": {"scheduler": None, "steps": 50},
    "fast": {"scheduler": "DPMSolverMultistepScheduler", "steps": 15},
    "turbo": {"scheduler": "DPMSolverMultistepScheduler", "steps": 12, "cache_interval": 2},
}
# What a preset takes charge of: those that it does not name get their defaults.
PRESET_KNOBS = ("scheduler", "steps", "guidance_interval", "cache_interval")


def _ascending(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError("the first number must not be larger than the second")
    return interval


def _distinct(templates: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(templates)) < len(templates):
        raise ValueError("a template is listed twice")
    return templates


class SelectConfig(Section):
    """Which generated images are published; by default all. With label_top_k, max_shot_similarity or coverage, images
    are generated until each class has images_per_class that pass, or all that max_candidates allows and the method
    plans; the judge is the untrained CLIP of classify.model."""

    label_top_k: int | None = Field(None, ge=1)
    """Keep an image if its class is among so many that CLIP finds most likely (DISEF: 1); unset: keep all. A CLIP that
    does not know the domain rejects much that it would learn from."""
    max_shot_similarity: float | None = Field(None, gt=0, lt=1)
    """An image is left out as a copy if the cosine similarity of its CLIP features with a shot of its class exceeds
    this; unset: keep all. Which value is high depends on the data and the CLIP: dataset/selection.json has for each
    class the highest similarity of its shots among themselves."""
    coverage: float = Field(1.0, ge=1)
    """Images that must pass for each one that is published: of these, those are published that cover the class best
    (k-center in CLIP's features, beginning at the shots); 1 publishes the first ones."""
    max_candidates: float = Field(4.0, ge=1)
    """Bound of the images that are generated for a class, as a multiple of images_per_class x coverage; a class of
    which too few pass is published with what it has, and named."""

    @property
    def on(self) -> bool:
        """Whether anything is left out."""
        return self.label_top_k is not None or self.max_shot_similarity is not None or self.coverage > 1


class GenerateConfig(Section):
    """Generating the synthetic images and publishing them as a dataset."""

    preset: Preset | None = None
    """How much exactness to give for speed: exact (paper: 50 steps), fast (DPM-Solver++, 15 steps) or turbo (12 steps,
    cache_interval 2). Sets scheduler, steps, guidance_interval and cache_interval, unless these are given beside it;
    unset: as they are. Measured effect: docs/methods.md."""
    images_per_class: int = Field(500, ge=1)
    """Synthetic images per class (paper: 500)."""
    prompts: Annotated[tuple[PromptTemplate, ...], AfterValidator(_distinct)] = ()
    """Templates of the images' prompts, such as ["a photo of a {name}", "a drawing of a {name}"]: each image's seed
    chooses its own among them. Empty: data.prompt, which adapters and classifiers learn in any case."""
    steps: int = Field(50, ge=1)
    """Denoising steps (paper: 50)."""
    guidance_scale: float = Field(2.0, ge=1)
    """Classifier-free guidance (paper: 2.0); 1 turns it off."""
    guidance_interval: Annotated[tuple[Share, Share], AfterValidator(_ascending)] = (0.0, 1.0)
    """Noise levels that are guided, as shares of the training timesteps; elsewhere the UNet sees the prompt alone,
    which halves the step (Kynkäänniemi et al., NeurIPS 2024). (0, 1) guides all steps (paper)."""
    cache_interval: int = Field(1, ge=1)
    """The UNet's inner blocks are computed at every so many steps and reused in between (DeepCache, Ma et al., CVPR
    2024); 1 computes them always (paper)."""
    scheduler: str | None = None
    """A diffusers scheduler class, such as DPMSolverMultistepScheduler; unset: the one that the pipeline ships."""
    strength: float = Field(0.75, gt=0, le=1)
    """How far is-synth and disef noise their photo: 1 forgets it."""
    shot_order: Literal["in-turn", "random"] = "in-turn"
    """Which of its class's shots an image of is-synth starts from: each in turn, or one at random (DISEF's code, with
    which the paper ran is-synth)."""
    fit: Literal["crop", "pad"] = "crop"
    """How a photo that an image starts from becomes a square: crop takes its middle, pad puts black bars beside it
    (DISEF's code)."""
    chunk_size: int = Field(50, ge=1)
    """Images of one class per unit of work, retry and commit."""
    batch_size: int | None = Field(None, ge=1)
    """Images that are generated at once. Unset: 25 on CPUs, where that is fastest; on GPUs the part of a chunk that a
    short measurement finds fastest, noted for later starts. Out of memory halves it."""
    compile: bool = False
    """Compile the UNet's attention blocks (torch.compile), once for all adapters. Costs each worker a minute or more
    at its start; meant for long runs on GPUs, where it has not been measured yet."""
    image_format: Literal["webp", "png", "jpeg"] = "webp"
    """Encoding of generated images: lossless WebP, PNG, or JPEG at quality 95 without chroma subsampling."""
    dataset_format: Literal["parquet", "webdataset"] = "parquet"
    """Format of the published shards."""
    images_per_shard: int = Field(1000, ge=1)
    """Images per published shard."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Numbers of the generator. auto: fp16 on CUDA (paper), fp32 elsewhere."""
    decode_precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Numbers of the VAE that turns latents into pixels. auto: as precision says, and fp32 for images that overflow
    it."""
    select: SelectConfig = SelectConfig()
    """Which generated images are published."""

    @property
    def accepted_per_class(self) -> int:
        """Images of a class that must pass the filters."""
        return math.ceil(self.images_per_class * self.select.coverage)

    @property
    def candidates_per_class(self) -> int:
        """Images of a class that may be generated."""
        if not self.select.on:
            return self.images_per_class
        return math.ceil(self.accepted_per_class * self.select.max_candidates)

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        # Anything else than a mapping with a known preset is left to the fields' own checks, which name it.
        preset = values.get("preset") if isinstance(values, dict) else None
        return PRESETS[preset] | values if isinstance(preset, str) and preset in PRESETS else values
