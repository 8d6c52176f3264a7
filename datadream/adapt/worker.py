"""What every worker of this stage needs first: the loaded trainer, and an adapter's photos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from datadream.config import ExperimentConfig
from datadream.data.datasets import PhotoSource
from datadream.methods.base import AdapterSpec

if TYPE_CHECKING:
    import torch

    from datadream.adapt.lora_trainer import AdapterTrainer


def load_trainer(config: ExperimentConfig, device: torch.device) -> AdapterTrainer:
    """The base model on a device, ready to train adapters."""
    # Imported here, not above: diffusers takes seconds, and driver, controller and queue import this module as well.
    import torch

    from datadream.adapt.lora_trainer import AdapterTrainer
    from datadream.models.diffusion.pipeline import load_pipeline
    from datadream.runtime.device import dtype_of

    dtype = dtype_of(config.adapt.precision, device, on_cuda=torch.bfloat16)
    pipeline = load_pipeline(config.diffusion.model, config.diffusion.revision, device, dtype)
    return AdapterTrainer(pipeline, config.adapt, config.diffusion.resolution)


class PhotosOf(Sequence[Image.Image]):
    """The photos of an adapter, each read when it is asked for: a whole data set may not fit in memory."""

    def __init__(self, spec: AdapterSpec, source: PhotoSource) -> None:
        self._keys, self._source = [photo.key for photo in spec.photos], source

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Image.Image:
        """Raises OSError or ValueError naming a photo that cannot be read."""
        return self._source.read(self._keys[index])
