"""The classifier: what it trains on, and how."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from datadream.config.search import SearchConfig
from datadream.config.section import Section

Setting = Literal[
    "zero-shot", "gda-real", "real", "gda-synthetic", "synthetic", "gda-real+synthetic", "real+synthetic"
]
ImageTower = Literal["auto", "lora", "full"]
# Settings that use no generated images, so that all methods of a table share them.
SETTINGS_WITHOUT_IMAGES: tuple[Setting, ...] = ("zero-shot", "gda-real", "real")
# Settings that take steps of an optimiser.
TRAINED_SETTINGS: tuple[Setting, ...] = ("real", "synthetic", "real+synthetic")
# Settings that adapt CLIP without training; what follows gda- says to which images.
GAUSSIAN_SETTINGS: tuple[Setting, ...] = ("gda-real", "gda-synthetic", "gda-real+synthetic")
GAUSSIAN_VIEWS = {"real": 10, "synthetic": 1}
"""Augmented views of an image that these take, by origin. One shot has no spread of its own (authors' code: 10 views);
generated images are many."""


class AugmentConfig(Section):
    """Random changes to the classifier's training images (paper: random resized crop, flip, colour jitter,
    grayscale), in the order: RandAugment, crop, colours, blur, solarisation."""

    crop_from: Literal["photo", "square"] = "photo"
    """What crops of real photos are cut from: photo (all of it, with a short side of up to twice the CLIP's input) or
    square (its middle at the size of the input, as in earlier versions). Generated images are squares already."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Range of the area of a random resized crop, as a share of the image; (1, 1): the largest that crop_ratio
    allows."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    """Range of a crop's width over its height; (1, 1) keeps squares."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How a crop's pixels are taken from the image (authors' code: bicubic)."""
    flip: bool | None = None
    """Mirror half of the images (paper: true); unset: no, for a mirrored character or sign is another one.
    classify.search.flips=[false, true] lets validation photos choose."""
    rotation: float = Field(0.0, ge=0, le=180)
    """Largest rotation, in degrees either way; 0 turns it off."""
    color_jitter: float = Field(0.4, ge=0, le=1)
    """Largest relative change of brightness, contrast and saturation; 0 turns it off."""
    saturation_jitter: float | None = Field(None, ge=0, le=1)
    """That of saturation where it is another (authors' code: 0.2 beside 0.4)."""
    hue_jitter: float = Field(0.0, ge=0, le=0.5)
    """Largest turn of the hue, as a share of the circle of colours (authors' code: 0.1); 0 turns it off."""
    jitter_share: float = Field(1.0, ge=0, le=1)
    """Share of images whose brightness, contrast, saturation and hue change (authors' code: 0.8)."""
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
    """Strength of the RandAugment operations, torchvision's bins 0 to 30 (authors' code: 9)."""


class ProtoAugConfig(Section):
    """ProtoAug's losses (Nguyen et al., ICML 2025) of synthetic and real+synthetic: images that look alike are to get
    like logits. Its weights stand beside cross-entropies of 4 and 1, and so do those here, five times smaller, beside
    real_weight 0.8."""

    discrepancy: float = Field(0.0, ge=0)
    """Weight of the squared difference between the logits of real and of synthetic images of a region (ProtoAug: 4);
    0 turns it off."""
    robustness: float = Field(0.0, ge=0)
    """Weight of the squared difference between the logits of synthetic images of a region (ProtoAug: 40); 0 turns it
    off."""
    regions: int | None = Field(None, ge=1)
    """Regions into which k-means divides all images by their pixels; unset: two for each class (ProtoAug)."""

    @property
    def on(self) -> bool:
        """Whether any of the losses has a weight."""
        return self.discrepancy > 0 or self.robustness > 0


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
    lora_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of its inputs that LoRA does not see in a training step (authors' code: 0.1); 0 turns it off, as
    adapted towers that are not of OpenAI's kind, such as SigLIP's text tower, need."""
    image_tower: ImageTower = "auto"
    """How the image tower learns: lora, or full (all of its weights). auto: lora where its layers are
    nn.MultiheadAttention, as in ViTs, full elsewhere, as in RN50 (paper). The text tower learns by LoRA."""
    context: int | None = Field(None, ge=1)
    """Learn so many words that stand before every class's name, in place of data.prompt, and nothing else: both towers
    are frozen (CoOp, Zhou et al., 2022: 16). Unset: LoRA (paper)."""
    epochs: int | None = Field(10, ge=1)
    """Passes over generate.images_per_class images of every class (authors' script: 10; the paper does not say):
    synthetic sees each image once in an epoch, real as many photos, each shot again and again, and real+synthetic
    both. Unset where steps are given."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps of every setting, in place of epochs."""
    batch_size: int = Field(64, ge=1)
    """Images per step over all workers (paper: 64); real+synthetic takes half of it from each."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Images that a worker's device holds at once, with the same result; for memory. Unset: all of its share."""
    learning_rate: float = Field(1e-4, gt=0)
    """AdamW's peak learning rate (paper: searched in 1e-4 .. 1e-7)."""
    weight_decay: float = Field(1e-4, ge=0)
    """AdamW's weight decay (paper: 5e-4 or 1e-4)."""
    warmup_steps: int | None = Field(None, ge=0)
    """Linear warm-up before the cosine schedule; unset: three tenths of the steps (authors' script: 3 of 10
    epochs)."""
    eval_every: int | None = Field(None, ge=1)
    """Steps between readings of the validation photos; the best reading's weights are kept. Unset: an epoch (authors'
    code), or a tenth of the steps where these are given."""
    select_on: Literal["val", "test"] = "val"
    """Photos that choose the weights. `test` is the authors' protocol, for comparison with their figures alone: it
    flatters, and every figure that it gave is marked."""
    folds: int = Field(2, ge=0)
    """Without validation photos of every class, settings with real photos divide the shots in so many parts (at most
    n_shots), train as often without one of them, and choose the number of steps by the mean accuracy on the parts left
    out: the last that is within a standard error of the best. Then they train that long on all shots; gda- settings
    choose their weight instead. A setting without real photos reads its accuracy on all shots. Generated images have
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
    protoaug: ProtoAugConfig = ProtoAugConfig()
    """Losses between images that look alike."""
    augment: AugmentConfig = AugmentConfig()
    """Random changes to the training images."""
    search: SearchConfig = SearchConfig()
    """Choosing knobs of training on validation photos."""

    @model_validator(mode="before")
    @classmethod
    def _steps_alone(cls, values: Any) -> Any:
        # Also for runs of versions that knew steps alone.
        if isinstance(values, dict) and values.get("steps") is not None:
            return {"epochs": None} | values
        return values

    @model_validator(mode="after")
    def _knobs_agree(self) -> ClassifyConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("expected either epochs or steps; set the one that you mean, and leave the other null")
        if self.protoaug.on and self.micro_batch_size is not None:
            raise ValueError("protoaug compares all images of a batch; leave micro_batch_size unset")
        if self.context is not None and self.image_tower != "auto":
            raise ValueError("context learns words and freezes both towers; leave image_tower=auto, or context unset")
        return self
