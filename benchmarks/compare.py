"""Time arms of the same work side by side: interleaved, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "ray", "open_clip_torch")
RESAMPLES = 2000
"""Of the bootstrap: its interval then moves by less than what is printed."""


def interleaved(arms: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of every call of every arm, after `warm_up` rounds that do not count; each round calls each arm once."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(warm_up + rounds):
        for name, run in arms.items():
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def speedup(plain: Sequence[float], ours: Sequence[float]) -> dict[str, float | list[float]]:
    """Median of the rounds' ratios and its 95 % interval (bootstrap over rounds)."""
    ratios = np.array(plain) / np.array(ours)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (RESAMPLES, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return {"median": round(float(np.median(ratios)), 2), "ci95": [round(float(low), 2), round(float(high), 2)]}


def milliseconds(seconds: Sequence[float], per: int = 1) -> float:
    """The median of an arm's calls, divided by the units of work of a call."""
    return round(statistics.median(seconds) / per * 1e3, 2)


def peak_gib(run: Callable[[], Any], held_bytes: int, device: str) -> float | None:
    """Most GPU memory that a call takes, were the `held_bytes` of its models all that is held; None on CPUs."""
    if device == "cpu":
        run()
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    # Other arms hold their models at the same time: what they hold is in `before`, and not this arm's.
    return round((torch.cuda.max_memory_allocated() - before + held_bytes) / 2**30, 2)


def kernel_seconds(run: Callable[[], Any], device: str) -> dict[str, float]:
    """Seconds of a call by kernel, longest first; on CPUs by operator. What a GPU does is one after another, so that
    the sum is the time for which it is busy."""
    on_gpu = device == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    kind = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    # An annotation, such as an optimiser's step, lasts as long as the kernels under it, which are there already.
    events = (event for event in profile.key_averages() if not event.is_user_annotation)
    seconds = {event.key: getattr(event, kind) / 1e6 for event in events}
    return dict(sorted(seconds.items(), key=lambda pair: -pair[1]))


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts, while the block runs: pipelines loaded, images encoded by a VAE, prompts by a text encoder, and latents
    that a UNet sees."""
    counts: Counter[str] = Counter()
    load, encode, forward = StableDiffusionPipeline.from_pretrained, AutoencoderKL.encode, CLIPTextModel.forward
    predict = UNet2DConditionModel.forward

    def counted_load(*args: Any, **kwargs: Any) -> Any:
        counts["model_loads"] += 1
        return load(*args, **kwargs)

    def counted_encode(self: AutoencoderKL, images: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        counts["vae_encodes"] += len(images)
        return encode(self, images, *args, **kwargs)

    def counted_forward(self: CLIPTextModel, tokens: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        counts["prompt_encodings"] += len(tokens)
        return forward(self, tokens, *args, **kwargs)

    def counted_predict(self: UNet2DConditionModel, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        counts["unet_evaluations"] += len(latents)
        return predict(self, latents, *args, **kwargs)

    with (
        patch.object(UNet2DConditionModel, "forward", counted_predict),
        patch.object(StableDiffusionPipeline, "from_pretrained", counted_load),
        patch.object(AutoencoderKL, "encode", counted_encode),
        patch.object(CLIPTextModel, "forward", counted_forward),
    ):
        yield counts


def machine() -> dict[str, Any]:
    """What the figures belong to: processor, GPU, cores and versions."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "gpu": gpu, "versions": versions}


def _cpu() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()
