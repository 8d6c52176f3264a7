"""CLIP features of candidates, shots and prompts, committed piece by piece (Ray Data).

Encoding an image costs a thousandth of drawing it, so it follows the drawing of a round and has its devices to itself.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.data
from PIL import Image

from datadream.config import ExperimentConfig
from datadream.data.datasets import open_source
from datadream.data.few_shot import FewShotSet
from datadream.data.shards import from_parquet
from datadream.hashing import sha256
from datadream.methods.chunks import Chunk
from datadream.run.layout import FEATURES
from datadream.run.store import RunStore
from datadream.runtime.map_units import plain_errors, quiet_ray_data
from datadream.runtime.progress import Progress
from datadream.runtime.session import Workers

if TYPE_CHECKING:
    from torch import Tensor

PROMPTS = "prompts"
BATCH = 64
"""Images or prompts that CLIP encodes at once."""
DECODE_THREADS = 4
"""Threads that decode and resize images beside the encoder."""


@dataclass(frozen=True, slots=True)
class FeatureJob:
    """What is encoded and committed together: the images of a chunk, photos, or prompts."""

    run_url: str
    name: str
    chunk_file: str = ""
    photos: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()


def shots_name(label: int) -> str:
    """The features of a class's shots."""
    return f"shots-{label:05d}"


def feature_jobs(run_url: str, few_shot: FewShotSet, chunks: Sequence[Chunk]) -> list[FeatureJob]:
    """All that decisions on these candidates need."""
    return [
        FeatureJob(run_url, PROMPTS, prompts=few_shot.prompts),
        *(FeatureJob(run_url, shots_name(label), photos=keys) for label, keys in enumerate(few_shot.shots)),
        *(FeatureJob(run_url, chunk.chunk_id, chunk_file=chunk.file) for chunk in chunks),
    ]


def encode_features(
    jobs: Sequence[FeatureJob], config: ExperimentConfig, workers: Workers, progress: Progress
) -> None:
    """Encode what is not committed yet; raises RuntimeError saying what failed, after which the rest stays."""
    committed = {url: RunStore(url).markers(FEATURES) for url in {job.run_url for job in jobs}}
    todo = [job for job in jobs if job.name not in committed[job.run_url]]
    if not todo:
        return
    quiet_ray_data()
    encoded = ray.data.from_items([{"job": pickle.dumps(job)} for job in todo], override_num_blocks=len(todo)).map(
        _FeatureEncoder,
        fn_constructor_args=(config, workers),
        compute=ray.data.ActorPoolStrategy(size=workers.at_most(len(todo)).count),
        num_cpus=0 if workers.use_gpu else workers.threads,
        num_gpus=1 if workers.use_gpu else 0,
    )
    with plain_errors("encoding"):
        for row in encoded.iter_rows():
            progress.update(progress.done + row["n_candidates"])


def read_features(store: RunStore, name: str) -> np.ndarray:
    """Committed unit features [n, D], fp32."""
    return np.load(io.BytesIO(store.read_bytes(_file(name))))


class _FeatureEncoder:
    """Ray Data actor: holds the classifier's CLIP, untrained."""

    def __init__(self, config: ExperimentConfig, workers: Workers) -> None:
        # Imported here, not above: open_clip takes seconds, and the driver imports this module as well.
        from datadream.models.clip.load import load_clip
        from datadream.runtime.device import use_threads, worker_device

        use_threads(workers.threads)
        self._device = worker_device(workers.use_gpu)
        self._clip = load_clip(config.classify.model, config.classify.pretrained, self._device)
        self._source = open_source(config.data.source)
        self._threads = ThreadPoolExecutor(DECODE_THREADS)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"n_candidates": self._commit(pickle.loads(row["job"]))}

    def _commit(self, job: FeatureJob) -> int:
        """Encode and commit; returns how many candidates there were."""
        store = RunStore(job.run_url)
        features = self._features(store, job)
        buffer = io.BytesIO()
        np.save(buffer, features)
        store.write_bytes(_file(job.name), buffer.getvalue())
        store.write_json(_marker(job.name), {"n": len(features), "sha256": sha256(buffer.getvalue())})
        return len(features) if job.chunk_file else 0

    def _features(self, store: RunStore, job: FeatureJob) -> np.ndarray:
        if job.prompts:
            return self._encoded(self._encode_prompts, job.prompts)
        if job.photos:
            return self._encoded(self._encode_images, [partial(self._source.read, key) for key in job.photos])
        records = from_parquet(store.read_bytes(job.chunk_file))
        return self._encoded(self._encode_images, [partial(_decode, record.image) for record in records])

    def _encoded(self, encode: Callable[[Sequence[Any]], Tensor], items: Sequence[Any]) -> np.ndarray:
        parts = (items[start : start + BATCH] for start in range(0, len(items), BATCH))
        return np.concatenate([encode(part).cpu().numpy() for part in parts])

    def _encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        import torch

        with torch.no_grad():
            return self._clip.encode_text(self._clip.tokenizer(prompts).to(self._device))

    def _encode_images(self, read: Sequence[Callable[[], Image.Image]]) -> Tensor:
        import torch

        prepared = self._threads.map(lambda read_image: self._clip.preprocess(read_image()), read)
        with torch.no_grad():
            return self._clip.encode_image(torch.stack(list(prepared)).to(self._device))


def _decode(image: bytes) -> Image.Image:
    return Image.open(io.BytesIO(image)).convert("RGB")


def _file(name: str) -> str:
    return f"{FEATURES}/{name}.npy"


def _marker(name: str) -> str:
    return f"{FEATURES}/{name}.json"
