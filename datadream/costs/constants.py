"""What a worker takes for each piece of work: measured on CPUs, or counted in FLOPs and modelled for GPUs.

What a constant may be wrong by stands beside it, and so beside every figure that is made of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from datadream.config import ExperimentConfig

EMBEDDED = "package://datadream.models.tiny/"
"""How the embedded models' names begin."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A kind of GPU, by its vendor's data sheet."""

    peak: float
    """Dense bf16 matrix products with fp32 sums, in TFLOP/s."""
    gib: float


GPUS = {
    "a10g": Gpu(70, 24),
    "a100": Gpu(312, 80),
    "b200": Gpu(2250, 180),
    "h100": Gpu(989, 80),
    "h200": Gpu(989, 141),
    "l4": Gpu(121, 24),
    "l40s": Gpu(362, 48),
    "rtx4090": Gpu(165, 24),
}
STAND_IN = "a10g"
"""What a GPU is counted as whose speed is not known."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Workers, each a GPU or CPU threads."""

    workers: int
    gpu: str | None = None
    """One of GPUS; None: workers on CPUs."""

    def __str__(self) -> str:
        plural = "" if self.workers == 1 else "s"
        return f"{self.workers:,} {self.gpu.upper() if self.gpu else 'CPU worker'}{plural}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What one worker takes for each piece of work, in seconds, and what it leaves, in bytes."""

    crop: float
    """Of a training step of an adapter, each crop in its batch."""
    launch: float
    """Of a training step, whatever is in it: adapters side by side share it, and workers do not."""
    encode: float
    """A crop into latents, once."""
    guided: float
    """A denoising step of one image, with guidance."""
    plain: float
    """Without guidance."""
    decode: float
    """Latents into an image."""
    image: float
    """Of a classifier's training step, each image."""
    name: float
    """Of a classifier's training step, each class."""
    read: float
    """A photo that is classified."""
    together: float
    """Of a classifier's training step, what no number of workers makes less."""
    start: float
    """Until the workers of a stage work."""
    adapter_bytes: float
    image_bytes: Mapping[str, float]
    """By generate.image_format."""
    classifier_bytes: float
    error: float
    """Seconds may be so much larger or smaller, as a share."""
    is_measured: bool
    source: str
    overlaps: bool = False
    """Whether kernels are launched while others compute, as on GPUs."""

    def step(self, crops: int, workers: int = 1) -> float:
        """Seconds of a training step of adapters on so many crops, which workers share out."""
        computing = crops * self.crop / workers
        return max(computing, self.launch) if self.overlaps else computing + self.launch


# On machines of two makers a training step took 48 and 54 ms, side by side, and a denoising step 3.4 and 5.5 ms, of
# which these are the means. Bytes are those of the files of the digits recipe, provenance included.
EMBEDDED_ON_CPU = Constants(
    crop=0.0053,
    launch=0.037,
    encode=0.0008,
    guided=0.0043,
    plain=0.0022,
    decode=0.0018,
    image=0.00145,
    name=0.00037,
    read=0.00075,
    together=0.0,
    start=17.0,
    adapter_bytes=0.79e6,
    image_bytes={"webp": 2250, "png": 2680, "jpeg": 1900},
    classifier_bytes=0.4e6,
    error=0.3,
    is_measured=True,
    source="measured on 2 CPU cores of two machines, one thread a worker (benchmarks/RESULTS.md)",
)
# FLOPs counted with tensors without data, in TFLOP; bytes measured on photographs of 512 pixels. `launch` and
# `together` are seconds that launching the kernels of a step takes a CPU, from how many there are.
# crop: an eighth of the 13.84 that UNet passes over a batch of 8 take, forwards and backwards (bwd / fwd is 1.14, for
# no weight but LoRA's has a gradient). image: a step's 0.0712 of ViT-B/16, and read 0.0351 without gradients, less the
# 7 % that a last block for the class token alone saves. name: 0.49 for 1,000 prompts of ImageNet, packed.
# start: imports 7 s (measured: 6.5), CUDA 2, weights 2 to 3, compiled kernels 12, CUDA graphs 4.
STABLE_DIFFUSION = Constants(
    crop=1.730,
    launch=0.030,
    encode=1.117,
    guided=1.5605,
    plain=0.800,
    decode=2.5145,
    image=0.0662,
    name=0.00049,
    read=0.0327,
    together=0.004,
    start=27.0,
    adapter_bytes=25.3e6,
    image_bytes={"webp": 357e3, "png": 451e3, "jpeg": 130e3},
    classifier_bytes=6e6,
    error=0.35,
    is_measured=False,
    source="FLOPs of Stable Diffusion 2.1 and CLIP ViT-B/16, counted",
)
WORK_OF_ADAPT, WORK_OF_GENERATE = ("crop", "encode"), ("guided", "plain", "decode")
SHARE_OF_PEAK = dict.fromkeys(WORK_OF_ADAPT, 0.38) | dict.fromkeys(WORK_OF_GENERATE, 0.44)
SHARE_OF_PEAK |= dict.fromkeys(("image", "name", "read"), 0.39)
"""Of a GPU's peak, what each piece of work is assumed to reach; by the rates of single kernels on an H200."""
KNOWN_GPUS = ("h100", "h200")
"""Those that the shares were assumed for; on others they may be wrong by a factor of 2."""
CPU_TFLOPS = 0.04
"""Of one thread: a training step of the embedded backbone takes 2.4 GFLOP in 48 to 79 ms."""
SIDE = 512
"""Pixels of the images that STABLE_DIFFUSION holds for."""


def is_embedded(config: ExperimentConfig) -> bool:
    """Whether a run's generator is the small one in this package."""
    return config.diffusion.model.startswith(EMBEDDED)


def constants_of(config: ExperimentConfig, cluster: Cluster) -> Constants:
    """The constants of a run's generator on these workers, and of a classifier of the same kind."""
    if is_embedded(config):
        return EMBEDDED_ON_CPU
    counted, pixels = STABLE_DIFFUSION, (config.diffusion.resolution / SIDE) ** 2
    if cluster.gpu:
        peak, error = GPUS[cluster.gpu].peak, 0.35 if cluster.gpu in KNOWN_GPUS else 1.0
        rates = {name: peak * share for name, share in SHARE_OF_PEAK.items()}
        source = f"{counted.source}, at 38 to 44 % of the {cluster.gpu.upper()}'s {peak:g} TFLOP/s, assumed"
    else:
        rates, error = dict.fromkeys(SHARE_OF_PEAK, CPU_TFLOPS), 1.0
        source = f"{counted.source}, at {1000 * CPU_TFLOPS:g} GFLOP/s of a CPU thread, measured on small models"
    seconds = {
        name: getattr(counted, name) * (pixels if name in WORK_OF_ADAPT + WORK_OF_GENERATE else 1.0) / rate
        for name, rate in rates.items()
    }
    formats = {name: n_bytes * pixels for name, n_bytes in counted.image_bytes.items()}
    return replace(counted, **seconds, image_bytes=formats, error=error, source=source, overlaps=bool(cluster.gpu))


def gpu_named(name: str) -> str:
    """The kind of GPU in GPUS that a user, Ray or a driver calls so; raises ValueError where there is none."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    spelled = {*words, *map("".join, pairwise(words))}
    for known in GPUS:
        if known in spelled:
            return known
    raise ValueError(f"GPU {name!r} is none whose speed is known. Known: {', '.join(GPUS)}.")
