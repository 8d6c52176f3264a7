"""Where a model's files are: a Hub id, a local folder, or a folder inside an installed package.

Imports nothing heavy, so that a wrong id is told at once.
"""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path

PACKAGE_SCHEME = "package://"
PIPELINE_CLASSES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")


def resolve(model: str) -> str:
    """Turn ``package://<module>/<folder>`` into that folder's path; every other id or path stays as it is.

    A path inside a package differs between machines; its id does not, so configs stay portable.
    Raises FileNotFoundError when the package or its folder does not exist.
    """
    if not model.startswith(PACKAGE_SCHEME):
        return model
    module, _, folder = model.removeprefix(PACKAGE_SCHEME).partition("/")
    try:
        path = importlib.resources.files(module).joinpath(folder)
    except ModuleNotFoundError:
        raise FileNotFoundError(f"model {model!r}: no installed package {module!r}.") from None
    if not path.is_dir():
        raise FileNotFoundError(f"model {model!r}: package {module!r} has no folder {folder!r}.")
    return str(path)


def check_pipeline(model: str, revision: str | None) -> None:
    """Raises ValueError when `model` is no Stable Diffusion pipeline, without loading its weights."""
    folder = Path(resolve(model))
    # An absolute path is never a Hub id: where it does not exist it is a mistyped folder.
    if folder.exists() or folder.is_absolute():
        if not (folder / "model_index.json").is_file():
            raise ValueError(
                f"diffusion.model {model!r} is no diffusers pipeline: it has no model_index.json. "
                "Give a folder saved by diffusers, or a Hub id."
            )
        index = json.loads((folder / "model_index.json").read_text())
    else:
        from huggingface_hub import hf_hub_download

        try:
            index = json.loads(Path(hf_hub_download(model, "model_index.json", revision=revision)).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"diffusion.model {model!r} is neither a folder nor a pipeline that the Hub hands out here "
                f"({type(error).__name__}). Check the id and the network, or give a local folder."
            ) from None
    found = index.get("_class_name")
    if found not in PIPELINE_CLASSES:
        raise ValueError(
            f"diffusion.model {model!r} is a {found}: "
            f"need a Stable Diffusion pipeline (model_index.json of {PIPELINE_CLASSES[0]})."
        )
