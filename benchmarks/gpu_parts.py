"""What `python -m benchmarks.gpu` measures, part by part; each part is a process of its own.

A part is a generator of figures: what it has yielded stays known when it fails or runs out of time later. Arms that
are compared are called in turn in the same process. Models have random weights: their work is that of trained ones,
their images and accuracies mean nothing.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from diffusers.utils.logging import disable_progress_bar as disable_diffusers_bar
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils.logging import disable_progress_bar as disable_transformers_bar

from benchmarks import adapt as adapters
from benchmarks import classify as classifiers
from benchmarks import generate as images
from benchmarks.compare import interleaved, kernel_seconds, machine, milliseconds, peak_gib, speedup
from benchmarks.shapes import SHAPES, Shapes, weight_bytes
from datadream.adapt.latent_cache import LatentCache
from datadream.config import PRESETS
from datadream.models.diffusion.compile import compile_blocks

Figures = dict[str, Any]
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
PAPER_STEPS = PRESETS["exact"]["steps"]
TOP_KERNELS = 10
KERNELS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)
"""Of attention; the fourth, which is plain operations, is what they are there to avoid."""
WATCHDOG_SECONDS = 200.0
"""From a start of the command until it has got far enough to be killed; also until killed processes are gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Amounts:
    """How much is measured: enough on a GPU that a call's start does not count, little where only code is tested."""

    rounds: int
    adapter_groups: tuple[int, ...]
    compiled_groups: tuple[int, ...]
    recorded_groups: tuple[int, ...]
    adapter_steps: int
    """Of a call."""
    images: int
    few_steps: int
    more_steps: int
    """Denoising steps of the exact arms; their 50 are extrapolated from both."""
    classes: tuple[int, ...]
    photos: int
    """Of an evaluation."""
    batch: int
    """Photos of a classifier's step."""
    compiled_presets: tuple[str, ...]
    matmul: int
    """Rows of the square product that measures the peak."""


AMOUNTS = {
    "tiny": Amounts(
        rounds=1,
        adapter_groups=(1, 2),
        compiled_groups=(2,),
        recorded_groups=(2,),
        adapter_steps=1,
        images=1,
        few_steps=1,
        more_steps=6,
        classes=(3, 6),
        photos=9,
        batch=4,
        compiled_presets=("exact",),
        matmul=64,
    ),
    "sd21": Amounts(
        rounds=5,
        adapter_groups=(1, 2, 4, 8),
        compiled_groups=(1, 2, 4, 8),
        recorded_groups=(1, 2),
        adapter_steps=4,
        images=20,
        few_steps=4,
        more_steps=14,
        classes=(10, 100, 1000),
        photos=64,
        batch=classifiers.BATCH,
        compiled_presets=tuple(PRESETS),
        matmul=8192,
    ),
}


@dataclass(frozen=True, slots=True)
class Job:
    """Where a part measures, what, and a folder for what it writes meanwhile."""

    device: str
    shapes_name: str
    folder: Path

    def prepare(self) -> None:
        """What holds for the whole process."""
        disable_diffusers_bar()
        disable_transformers_bar()
        if self.device == "cpu":
            # Where only the code is tested other work is beside it, and threads would wait for each other.
            torch.set_num_threads(1)

    @property
    def shapes(self) -> Shapes:
        return SHAPES[self.shapes_name]

    @property
    def amounts(self) -> Amounts:
        return AMOUNTS[self.shapes_name]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to do some work."""

    run: Callable[[], Any]
    units: int = 1
    """Of work in a call: adapter steps, images."""
    modules: tuple[nn.Module, ...] = ()
    """Its models."""


@dataclass(frozen=True, slots=True)
class ImageArm:
    """One way to draw images.

    An arm of the paper's 50 steps is called with few and with more, and a line through both gives 50: every step
    costs the same, and what is done once per image is in both. A preset with fewer takes them all.
    """

    draw: Callable[[int], Any]
    """Steps -> images."""
    steps: tuple[int, ...]
    pipeline: Any

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return (self.pipeline.unet, self.pipeline.text_encoder, self.pipeline.vae)


def machine_figures(job: Job) -> Iterator[Figures]:
    """What the figures belong to."""
    found = machine()
    if job.device == "cpu":
        found["gpu"] = None
    else:
        found["gpu_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    yield found


def tests(job: Job) -> Iterator[Figures]:
    """The tests that need a GPU; on a CPU the same checks without one."""
    marked = "gpu" if job.device == "cuda" else "not gpu"
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", marked, "--disable-warnings"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    *_, last = done.stdout.strip().splitlines() or [""]
    yield {"said": last, "exit_code": done.returncode}
    if done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-2000:]}")


def adapt(job: Job) -> Iterator[Figures]:
    """A training step: the authors' loop as shipped (fp32), the same with bf16 autocast, ours with C adapters."""
    amounts, folders = job.amounts, adapters.write_photos(job.folder / "photos", job.shapes)
    arms = {}
    for name, dtype in (("plain fp32", torch.float32), ("plain bf16", torch.bfloat16)):
        plain = adapters.plain_trainer(job.shapes, folders[0], job.device, dtype)
        # Read before the time counts, as workers of a data loader would: in the plain arms' favour.
        step = partial(plain.step, plain.read())
        arms[name] = _repeated(step, amounts.adapter_steps, 1, plain.pipeline)
    for n in amounts.adapter_groups:
        ours = adapters.OurSteps(job.shapes, folders[:n], job.device)
        arms[f"C={n}"] = _repeated(ours.step, amounts.adapter_steps, n, ours.pipeline)
    yield {"steps": _timed(arms, job)}
    vae, (_, (photos, *_)) = ours.pipeline.vae, adapters.read_photos(folders[:1])

    def encode() -> None:
        cache = LatentCache(vae, photos, job.shapes.resolution, grid=8)
        cache.latents(*cache.sample_crops(range(len(photos)), torch.Generator().manual_seed(0)))

    # Not part of ours' steps above: a crop is encoded when it comes for the first time.
    yield {"encode": _timed({"a crop": Arm(encode, len(photos), (vae,))}, job)}


def adapt_recorded(job: Job) -> Iterator[Figures]:
    """Ours with the gradient as a CUDA graph, beside the same without, for few adapters: their kernels are short."""
    yield from _adapters_beside_eager(job, job.amounts.recorded_groups, "recorded", {"recorded": True})


def adapt_compiled(job: Job) -> Iterator[Figures]:
    """What adapt.compile turns on, beside ours without it; the first call compiles."""
    yield from _adapters_beside_eager(
        job, job.amounts.compiled_groups, "compiled", {"compiled": True, "recorded": True}
    )


def _adapters_beside_eager(job: Job, groups: Sequence[int], other: str, how: Mapping[str, bool]) -> Iterator[Figures]:
    folders = adapters.write_photos(job.folder / "photos", job.shapes)
    for n in groups:
        arms = {}
        for name, settings in (("eager", {}), (other, how)):
            ours = adapters.OurSteps(job.shapes, folders[:n], job.device, **settings)
            arms[name] = _repeated(ours.step, job.amounts.adapter_steps, n, ours.pipeline)
        yield {f"C={n}": _timed(arms, job)}
        del ours, arms
        _free(job.device)


def generate(job: Job) -> Iterator[Figures]:
    """Images: the authors' loop and plain diffusers without reloading, and ours."""
    folder = images.write_adapters(job.folder / "adapters", 1, job.shapes, job.device)[0]
    plain, seeds = images.load(job.shapes, job.device), range(job.amounts.images)
    plain.load_lora_weights(folder)
    counts = job.amounts.few_steps, job.amounts.more_steps
    arms = {
        name: ImageArm(lambda steps, batch=batch: [*images.draw_plain(plain, seeds, steps, batch)], counts, plain)
        for name, batch in (("authors", images.AUTHORS_BATCH), ("kept", len(seeds)))
    }
    arms |= {preset: _our_arm(job, folder, preset) for preset in PRESETS}
    yield {"images": _timed_images(arms, job)}
    kept, ours = (np.stack([np.asarray(one, int) for one in arms[name].draw(counts[0])]) for name in ("kept", "exact"))
    difference = np.abs(kept - ours)
    yield {"pixels": {"largest_difference": int(difference.max()), "mean_difference": float(difference.mean())}}


def generate_ahead(job: Job) -> Iterator[Figures]:
    """Batches whose images are copied while the next is made, beside the same batches waited for one by one.

    With the preset that has the fewest steps, so that what is done between batches is most of the time.
    """
    folder = images.write_adapters(job.folder / "adapters", 1, job.shapes, job.device)[0]
    pipeline, seeds = images.load(job.shapes, job.device), range(max(2, job.amounts.images))
    sampler = images.our_sampler(pipeline, job.shapes, PAPER_STEPS, "turbo")
    sampler.batch_size = max(1, len(seeds) // 4)
    batches = [seeds[start : start + sampler.batch_size] for start in range(0, len(seeds), sampler.batch_size)]
    modules = (pipeline.unet, pipeline.text_encoder, pipeline.vae)
    arms = {
        "waiting": Arm(lambda: [images.draw_ours(sampler, folder, own) for own in batches], len(seeds), modules),
        "ahead": Arm(lambda: images.draw_ours(sampler, folder, seeds), len(seeds), modules),
    }
    yield {"images": _timed(arms, job)}
    one_by_one, ahead = arms["waiting"].run(), arms["ahead"].run()
    yield {"same_images": bool(np.array_equal(np.concatenate(one_by_one), ahead))}


def generate_compiled(job: Job) -> Iterator[Figures]:
    """Ours with compiled attention blocks, beside the same without; the first call compiles."""
    folder = images.write_adapters(job.folder / "adapters", 1, job.shapes, job.device)[0]
    for preset in job.amounts.compiled_presets:
        arms = {
            name: _our_arm(job, folder, preset, compiled) for name, compiled in (("eager", False), ("compiled", True))
        }
        yield {preset: _timed_images(arms, job)}
        del arms
        _free(job.device)


def attention(job: Job) -> Iterator[Figures]:
    """torch's kernels of attention, on all that a denoising step and a training step ask of it."""
    loops: dict[str, tuple[Callable[[Job], Callable[[], Any]], torch.dtype]] = {
        "denoising": (_denoising, torch.float16),
        "adapter step": (_adapter_step, torch.bfloat16),
    }
    for name, (build, dtype) in loops.items():
        run = build(job)
        run()  # encodes the photos, which later steps do not
        calls = _attention_calls(run)
        del run
        _free(job.device)
        work = _Attention(calls, job.device, dtype, backward=name == "adapter step")
        arms, differences, missing = {"default": Arm(work.run)}, {}, {}
        for kernel in KERNELS:
            try:
                differences[kernel.name] = work.difference(kernel)
            except RuntimeError as error:  # not for this device, or not for these shapes
                missing[kernel.name] = str(error)[:200]
            else:
                arms[kernel.name] = Arm(partial(work.run, kernel))
        yield {name: _timed(arms, job)}
        yield {f"{name}, differences": differences, f"{name}, missing": missing}
        del work, arms
        _free(job.device)


def _attention_calls(run: Callable[[], Any]) -> Counter[tuple[torch.Size, ...]]:
    """How often a call of `run` asks for attention of which shapes of queries, keys and values."""
    calls: Counter[tuple[torch.Size, ...]] = Counter()
    attend = F.scaled_dot_product_attention

    def heard(*tensors: Tensor, **settings: Any) -> Tensor:
        # The text encoder's is causal, small and its own.
        if not settings.get("is_causal") and settings.get("attn_mask") is None:
            calls[tuple(tensor.shape for tensor in tensors)] += 1
        return attend(*tensors, **settings)

    with patch.object(F, "scaled_dot_product_attention", heard):
        run()
    return calls


class _Attention:
    """The same attention again and again, on normal numbers."""

    def __init__(
        self, calls: Mapping[tuple[torch.Size, ...], int], device: str, dtype: torch.dtype, backward: bool
    ) -> None:
        self._backward = backward
        torch.manual_seed(0)
        new = partial(torch.randn, device=device, dtype=dtype, requires_grad=backward)
        # In memory as a linear layer leaves them: all heads of a token side by side.
        self._calls = [
            ([new(n, tokens, heads, width) for n, heads, tokens, width in shapes], count)
            for shapes, count in calls.items()
        ]

    def run(self, kernel: SDPBackend | None = None) -> None:
        with nullcontext() if kernel is None else sdpa_kernel(kernel):
            for inputs, count in self._calls:
                for _ in range(count):
                    out = self._attend(inputs)
                    if self._backward:
                        torch.autograd.grad(out, inputs, out.detach())

    @torch.no_grad()
    def difference(self, kernel: SDPBackend) -> float:
        """Of the outputs, to those of torch's own choice; raises RuntimeError when the kernel cannot do it."""
        largest = 0.0
        for inputs, _ in self._calls:
            expected = self._attend(inputs)
            with sdpa_kernel(kernel):
                found = self._attend(inputs)
            largest = max(largest, float((found - expected).abs().max()))
        return largest

    @staticmethod
    def _attend(inputs: Sequence[Tensor]) -> Tensor:
        return F.scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in inputs))


def classify(job: Job) -> Iterator[Figures]:
    """A classifier's step and evaluation: what the authors' code does, and ours, in fp32 and with bf16 autocast."""
    for n in job.amounts.classes:
        clip = job.shapes.classifier(job.device)
        both = classifiers.Arms(clip, n, job.amounts.photos, job.amounts.batch)
        check = asdict(both.check_equal())
        figures: Figures = {"check": {name: value for name, value in check.items() if name != "counters"}}
        for work in ("step", "evaluation"):
            plain, ours = getattr(both, f"plain_{work}"), getattr(both, f"our_{work}")
            arms = {
                "plain fp32": Arm(plain, 1, (both.plain.model,)),
                "plain bf16": Arm(_autocast(plain, job.device), 1, (both.plain.model,)),
                "ours fp32": Arm(partial(ours, precision="fp32"), 1, (both.clip.model,)),
                "ours bf16": Arm(partial(ours, precision="bf16"), 1, (both.clip.model,)),
            }
            figures[work] = _timed(arms, job)
        yield {f"N={n}": figures}
        del clip, both, plain, ours, arms
        _free(job.device)


def roofline(job: Job) -> Iterator[Figures]:
    """How near the hot loops are to what this device's matrix products reach, and where their time goes."""
    peaks = {name: _matmul_tflops(job, dtype) for name, dtype in HALF.items()}
    yield {"matmul_tflops": peaks}
    for name, (build, precision) in {
        "adapter step": (_adapter_step, "bf16"),
        "denoising": (_denoising, "fp16"),
        "classifier step": (_classifier_step, "bf16"),
    }.items():
        run = build(job)
        run()
        with FlopCounterMode(display=False) as counter:
            run()
        seconds = float(np.median(interleaved({"": run}, job.amounts.rounds)[""]))
        kernels = kernel_seconds(run, job.device)
        busy = sum(kernels.values())  # on a GPU; on a CPU what all operators take
        tflops = counter.get_total_flops() / seconds / 1e12
        yield {
            name: {
                "seconds": seconds,
                "tflop": counter.get_total_flops() / 1e12,
                "tflops": tflops,
                "share_of_peak": tflops / peaks[precision],
                "busy_share": round(min(1.0, busy / seconds), 3),
                "kernels": [
                    {"name": kernel, "ms": own * 1e3, "share": own / busy}
                    for kernel, own in list(kernels.items())[:TOP_KERNELS]
                ],
            }
        }
        del run
        _free(job.device)


def resume(job: Job) -> Iterator[Figures]:
    """The digits recipe through Ray, killed in each stage and given again, against one that nobody disturbed."""
    started = time.monotonic()
    _Command(job, "quiet").end()
    yield {"undisturbed_s": time.monotonic() - started}
    killed = []
    for stage, progress in {
        "adapt": "adapters/*/adapter.json",
        "generate": "chunks/*.json",
        "classify": "classifier/*/checkpoints/*.pt",
    }.items():
        command = _Command(job, "killed")
        if command.kill_once_there(progress):
            killed.append(stage)
    started = time.monotonic()
    _Command(job, "killed").end()
    files, different = _compared(job, "killed")
    last = time.monotonic() - started
    yield {"killed_in": killed, "last_start_s": last, "files": files, "different": different}
    if len(killed) < 3 or not files:
        raise RuntimeError(f"killed in {killed} alone, {files} files")
    if different:
        # Backward, a GPU's fused attention adds up in an order of its own each time: the kills may not be the reason.
        _Command(job, "again").end()
        _, undisturbed = _compared(job, "again")
        yield {"different_undisturbed": undisturbed}
        if not undisturbed:
            raise RuntimeError(f"kills changed {len(different)} of {files} files: {different[:5]}")


def _compared(job: Job, name: str) -> tuple[int, list[str]]:
    """How many files the undisturbed run has, and which of them are others, or missing, in another run."""
    quiet, other = _bytes_of(job.folder / "quiet"), _bytes_of(job.folder / name)
    return len(quiet), sorted(file for file in quiet.keys() | other.keys() if quiet.get(file) != other.get(file))


class _Command:
    """One start of `datadream run`."""

    def __init__(self, job: Job, name: str) -> None:
        self._run = job.folder / name
        # Batches are given, for a measurement may choose others the next time, and rounding depends on them.
        knobs = {
            "cluster.workers": 1,
            "cluster.checkpoint_steps": 20,
            "cluster.device": job.device,
            "adapt.adapters_per_step": 2,
            "adapt.steps_per_class": 30,
            "generate.images_per_class": 20,
            "generate.chunk_size": 10,
            "generate.batch_size": 10,
            "classify.settings": "[real+synthetic]",
            "classify.steps": 200,
        }
        words = [f"{knob}={value}" for knob, value in knobs.items()]
        command = [sys.executable, "-m", "datadream.cli", "run", "--recipe", "digits", "--run", str(self._run), *words]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self._process = psutil.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    def end(self) -> None:
        """Wait for it; raises RuntimeError when it fails."""
        if code := self._process.wait():
            raise RuntimeError(f"datadream run ended with {code}")

    def kill_once_there(self, pattern: str) -> bool:
        """Kill it and its Ray, as a power cut would, at the next file of `pattern`; False if it ended before.

        Raises TimeoutError when there is none for too long.
        """
        before, deadline = set(self._run.glob(pattern)), time.monotonic() + WATCHDOG_SECONDS
        while not set(self._run.glob(pattern)) - before and self._process.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {pattern} in {WATCHDOG_SECONDS:.0f} s")
            time.sleep(0.02)
        alive = self._process.poll() is None
        family = [*self._process.children(recursive=True), self._process] if alive else []
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, WATCHDOG_SECONDS)
        return alive


def _bytes_of(run: Path) -> dict[str, bytes]:
    """What must not depend on who was killed."""
    kinds = ("adapters/*/*.safetensors", "chunks/*", "dataset/**/*", "classifier/*/*.safetensors")
    return {
        str(path.relative_to(run)): path.read_bytes() for kind in kinds for path in run.glob(kind) if path.is_file()
    }


def _timed(arms: Mapping[str, Arm], job: Job) -> Figures:
    """Each arm's milliseconds per unit, seconds of its first call, GiB, and by how much it beats the first arm."""
    firsts = {name: _first_call(arm, job.device) for name, arm in arms.items()}
    calls = interleaved({name: arm.run for name, arm in arms.items()}, job.amounts.rounds, warm_up=0)
    per_unit = {name: [value / arms[name].units for value in values] for name, values in calls.items()}
    return {
        name: {"ms": milliseconds(values), **firsts[name], **_ratio(per_unit, name)}
        for name, values in per_unit.items()
    }


def _ratio(seconds: Mapping[str, Sequence[float]], name: str) -> Figures:
    """To the first arm."""
    first = next(iter(seconds))
    return {} if name == first else {f"{first} / this": speedup(seconds[first], seconds[name])}


def _first_call(arm: Arm, device: str) -> Figures:
    """It allocates what the others find, and compiles what they use."""
    started = time.perf_counter()
    gib = peak_gib(arm.run, weight_bytes(*arm.modules), device)
    return {"first_call_s": round(time.perf_counter() - started, 2), "gib": gib}


def _repeated(step: Callable[[], Any], times: int, units: int, pipeline: Any) -> Arm:
    """A call of several steps: waiting for the device at its end is then little of it."""

    def run() -> None:
        for _ in range(times):
            step()

    return Arm(run, times * units, (pipeline.unet, pipeline.text_encoder, pipeline.vae))


def _our_arm(job: Job, folder: Path, preset: str, compiled: bool = False) -> ImageArm:
    """On a model of its own: a sampler changes its UNet."""
    pipeline, seeds = images.load(job.shapes, job.device), range(job.amounts.images)
    sampler = images.our_sampler(pipeline, job.shapes, PAPER_STEPS, preset)
    if compiled:
        compile_blocks(pipeline.unet, backend="inductor" if job.device == "cuda" else "eager")
    own = PRESETS[preset]["steps"]
    counts = (job.amounts.few_steps, job.amounts.more_steps) if own == PAPER_STEPS else (own,)
    return ImageArm(lambda steps: images.draw_ours(images.with_steps(sampler, steps), folder, seeds), counts, pipeline)


def _timed_images(arms: Mapping[str, ImageArm], job: Job) -> Figures:
    """As `_timed`, per image, and the share of the time for which the GPU is busy."""
    calls = {(name, steps): partial(arm.draw, steps) for name, arm in arms.items() for steps in arm.steps}
    firsts = {
        (name, steps): _first_call(Arm(run, modules=arms[name].modules), job.device)
        for (name, steps), run in calls.items()
    }
    seconds = interleaved(calls, job.amounts.rounds, warm_up=0)
    per_image, figures = {}, {}
    for name, arm in arms.items():
        rounds = zip(*(seconds[name, steps] for steps in arm.steps), strict=True)
        per_image[name] = [_at_paper_steps(arm.steps, values) / job.amounts.images for values in rounds]
        longest = name, arm.steps[-1]
        figures[name] = {
            "ms": milliseconds(per_image[name]),
            "measured_steps": list(arm.steps),
            "first_call_s": firsts[name, arm.steps[0]]["first_call_s"],
            "gib": firsts[longest]["gib"],
            "busy_share": _busy_share(calls[longest], np.median(seconds[longest]), job.device),
            **_ratio(per_image, name),
        }
    return figures


def _at_paper_steps(counts: Sequence[int], seconds: Sequence[float]) -> float:
    """Of a call with the paper's steps, from calls with fewer; a preset's call is taken as it is."""
    if len(counts) == 1:
        return seconds[0]
    a_step = (seconds[1] - seconds[0]) / (counts[1] - counts[0])
    return seconds[1] + (PAPER_STEPS - counts[1]) * a_step


def _autocast(run: Callable[[], Any], device: str) -> Callable[[], Any]:
    def autocast() -> Any:
        with torch.autocast(device, dtype=torch.bfloat16):
            return run()

    return autocast


def _matmul_tflops(job: Job, dtype: torch.dtype) -> float:
    """Of a large square product: what a loop of nothing else would reach."""
    side = job.amounts.matmul
    one, other = (torch.randn(side, side, device=job.device, dtype=dtype) for _ in range(2))
    calls = interleaved({"": lambda: [torch.mm(one, other) for _ in range(10)]}, job.amounts.rounds)[""]
    return 10 * 2 * side**3 / min(calls) / 1e12


def _adapter_step(job: Job) -> Callable[[], Any]:
    folders = adapters.write_photos(job.folder / "photos", job.shapes)
    # The middle of the groups: what a worker trains side by side is measured on each device.
    n = job.amounts.adapter_groups[len(job.amounts.adapter_groups) // 2]
    return adapters.OurSteps(job.shapes, folders[:n], job.device).step


def _denoising(job: Job) -> Callable[[], Any]:
    """A few steps of a batch with guidance, without the VAE."""
    pipeline, n = images.load(job.shapes, job.device), job.amounts.images
    sampler = images.our_sampler(pipeline, job.shapes, PAPER_STEPS)
    generators = [torch.Generator().manual_seed(seed) for seed in range(n)]
    prompts, latents = sampler._prompts(images.PROMPT).detach(), sampler._noise(generators)

    def run() -> None:
        pipeline.scheduler.set_timesteps(PAPER_STEPS)  # it counts its steps
        steps = pipeline.scheduler.timesteps[: job.amounts.few_steps]
        sampler._denoiser.denoise(latents, steps, prompts, generators)

    return run


def _classifier_step(job: Job) -> Callable[[], Any]:
    clip, n = job.shapes.classifier(job.device), job.amounts.classes[-1]
    return classifiers.Arms(clip, n, job.amounts.photos, job.amounts.batch).our_step


def _busy_share(run: Callable[[], Any], seconds: float, device: str) -> float | None:
    """Of the time of a call for which the GPU does something; unknown for CPUs."""
    if device == "cpu":
        return None
    return round(min(1.0, sum(kernel_seconds(run, device).values()) / float(seconds)), 3)


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
