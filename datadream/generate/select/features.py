"""CLIP features of candidates, shots and prompts, committed piece by piece; on one device, without Ray.

Encoding an image costs a thousandth of generating it, so it follows the generation of candidates and has its devices
to itself.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image

from datadream.config import ExperimentConfig
from datadream.data.datasets import open_source
from datadream.data.few_shot import FewShotSet
from datadream.data.shards import from_parquet
from datadream.hashing import sha256
from datadream.methods.chunks import Chunk
from datadream.models.features import BATCH, image_features
from datadream.run.layout import FeaturesMarker, features_file, features_marker
from datadream.run.store import RunStore
from datadream.runtime.failures import retried
from datadream.runtime.unit import Unit

PROMPTS = "prompts"


@dataclass(frozen=True, slots=True)
class FeatureJob:
    """What is encoded and committed together: the images of a chunk, photos, or prompts."""

    name: str
    chunk_file: str = ""
    photos: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()


def shots_name(label: int) -> str:
    """The features of a class's shots."""
    return f"shots-{label:05d}"


def feature_units(run_url: str, few_shot: FewShotSet, chunks: Sequence[Chunk]) -> list[Unit[FeatureJob]]:
    """All that decisions on these candidates need; their size counts candidates."""
    jobs = [
        (FeatureJob(PROMPTS, prompts=few_shot.prompts), 0),
        *((FeatureJob(shots_name(label), photos=keys), 0) for label, keys in enumerate(few_shot.shots)),
        *((FeatureJob(chunk.chunk_id, chunk_file=chunk.file), len(chunk.requests)) for chunk in chunks),
    ]
    return [
        Unit(run_url=run_url, name=f"features {job.name}", marker=features_marker(job.name), payload=job, size=size)
        for job, size in jobs
    ]


_PARSING = threading.Lock()
"""numpy reads a file's header by ast.literal_eval, which in CPython 3.11 fails now and then where two threads do so at
once: "AST constructor recursion depth mismatch" (python/cpython#106905)."""


def read_features(store: RunStore, name: str) -> np.ndarray:
    """Committed unit features [n, D], fp32."""
    data = io.BytesIO(store.read_bytes(features_file(name)))
    with _PARSING:
        return np.load(data)


class FeatureEncoder:
    """The classifier's CLIP, untrained, on one device."""

    def __init__(self, config: ExperimentConfig, device: torch.device) -> None:
        # Imported here, not above: open_clip takes seconds, and the driver imports this module as well.
        from datadream.models.clip.load import load_clip

        self._device = device
        self._clip = load_clip(config.classify.model, config.classify.pretrained, device)
        self._source = open_source(config.data.source, config.data.background)

    def commit(self, unit: Unit[FeatureJob]) -> None:
        """Encode and commit."""
        store, job = unit.store, unit.payload
        if job.prompts:
            with torch.inference_mode():
                tokens = self._clip.tokenizer(job.prompts).to(self._device)
                features = torch.cat([self._clip.encode_text(part).cpu() for part in tokens.split(BATCH)]).numpy()
        else:
            if job.photos:
                source = self._source
                read = [partial(retried, partial(source.read, key), f"reading photo {key!r}") for key in job.photos]
            else:
                records = from_parquet(retried(lambda: store.read_bytes(job.chunk_file), f"reading {job.chunk_file}"))
                # Opened here, decoded by the threads: Pillow reads pixels when it is asked for them.
                read = [partial(Image.open(io.BytesIO(record.image)).convert, "RGB") for record in records]
            features = image_features(read, self._clip.preprocess, self._clip.encode_image, self._device)
        buffer = io.BytesIO()
        np.save(buffer, features)
        data = buffer.getvalue()
        marker = FeaturesMarker(n=len(features), sha256=sha256(data))
        retried(lambda: store.write_bytes(features_file(job.name), data), f"{unit.name}: writing")
        # The marker last: it says that the file is whole.
        retried(lambda: store.write_json(unit.marker, marker.to_json()), f"{unit.name}: writing")
