"""A CLIP as a checkpoint folder that plain open_clip loads."""

from __future__ import annotations

from pathlib import Path

from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import save_file

from datadream.models.clip.load import CONFIG, ClipModel, model_config

WEIGHTS = "open_clip_model.safetensors"
"""The name by which open_clip finds weights in a folder."""


def save_checkpoint(clip: ClipModel, model: str, folder: str | Path) -> Path:
    """Write a CLIP that was loaded as `model`: weights, config and tokenizer; load it as local-dir:<folder>.

    Raises ValueError when the folder is not empty.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{str(folder)!r} exists already. Name a new folder for the checkpoint.")
    folder.mkdir(parents=True, exist_ok=True)
    # safetensors refuses tensors that are views with gaps.
    save_file({name: tensor.contiguous() for name, tensor in clip.model.state_dict().items()}, folder / WEIGHTS)
    # open_clip's own tokenizer has no files.
    if hasattr(clip.tokenizer, "save_pretrained"):
        clip.tokenizer.save_pretrained(folder)
    save_config_for_hf(clip.model, folder / CONFIG, model_config(model))
    return folder
