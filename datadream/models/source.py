"""Where a model's files are: a Hub id, a local folder, or a folder inside an installed package.

Imports nothing heavy, so that a wrong id is told at once.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from datadream.config import nearest

PACKAGE_SCHEME = "package://"
PIPELINE_CLASSES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
PARTS_WITH_WEIGHTS = ("unet", "vae", "text_encoder")
INDEX = "model_index.json"
HALF = "fp16"
"""The one variant that publishers of Stable Diffusion use."""


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


def check_pipeline(model: str, revision: str | None) -> str | None:
    """The `variant` with which diffusers finds a pipeline's weights: None, or fp16 where there are no others.

    Reads names alone. Raises ValueError when `model` is no Stable Diffusion pipeline, or a part has no weights.
    """
    folder = Path(resolve(model))
    # An absolute path is never a Hub id: where it does not exist it is a mistyped folder.
    if folder.exists() or folder.is_absolute():
        if not (folder / INDEX).is_file():
            raise ValueError(
                f"diffusion.model {model!r} is no diffusers pipeline: it has no {INDEX}. "
                "Give a folder saved by diffusers, or a Hub id."
            )
        index, files = json.loads((folder / INDEX).read_text()), _files_below(folder)
    else:
        index, files = _on_hub(model, revision)
    found = index.get("_class_name")
    if found not in PIPELINE_CLASSES:
        raise ValueError(
            f"diffusion.model {model!r} is a {found}: "
            f"need a Stable Diffusion 1.x or 2.x pipeline ({INDEX} of a {PIPELINE_CLASSES[0]})."
        )
    variants = set()
    for part in PARTS_WITH_WEIGHTS:
        weights = [name for name in files if name.startswith(f"{part}/") and name.endswith((".safetensors", ".bin"))]
        plain = [name for name in weights if name.count(".") == 1]
        half = [name for name in weights if f".{HALF}" in name]
        if not plain and not half:
            there = ", ".join(sorted(name for name in files if name.startswith(f"{part}/"))) or "no such folder"
            raise ValueError(
                f"diffusion.model {model!r} has no weights for its {part} (there is: {there}). Expected "
                f"{part}/*.safetensors or .bin, or their {HALF} variant: complete the download, or save it again."
            )
        # Part by part, as diffusers does: with a variant it still takes plain files of a part that has no other.
        variants.add(None if plain else HALF)
    return HALF if HALF in variants else None


UNFIT = {
    "DPMSolverSDEScheduler": "its noise does not follow from an image's seed",
    "EDMEulerScheduler": "it is made for models that take other noise levels",
}
"""Schedulers that diffusers counts among those for Stable Diffusion, and why they are none for us."""


def check_scheduler(name: str | None) -> None:
    """Raises ValueError when diffusers has no such scheduler for Stable Diffusion, without importing it.

    It takes seconds to import, so its source is read; where that has changed, the sampler finds out.
    """
    diffusers = importlib.util.find_spec("diffusers")
    if name is None or diffusers is None or diffusers.origin is None:
        return
    source = Path(diffusers.origin).parent / "schedulers" / "scheduling_utils.py"
    known = re.findall(r"^    (\w+Scheduler) = \d+$", source.read_text() if source.is_file() else "", re.MULTILINE)
    if name in UNFIT:
        raise ValueError(f"generate.scheduler is {name!r}: {UNFIT[name]}. Use another, such as DDIMScheduler.")
    known = [fitting for fitting in known if fitting not in UNFIT]
    if known and name not in known:
        hint = nearest(name, known) or f"Known: {', '.join(known)}."
        raise ValueError(f"generate.scheduler is {name!r}: no scheduler of diffusers for Stable Diffusion. {hint}")


def _files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.glob("*/*")}


def _on_hub(model: str, revision: str | None) -> tuple[dict[str, Any], set[str]]:
    """A pipeline's index and the names of its files; those in the cache where the Hub cannot be asked."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        index = Path(hf_hub_download(model, INDEX, revision=revision))
        content = json.loads(index.read_text())
    except Exception as error:  # those of the Hub's client are no OSError, such as httpx's of a proxy
        raise ValueError(
            f"diffusion.model {model!r} is neither a folder nor a pipeline that the Hub hands out here "
            f"({type(error).__name__}). Check the id and the network, or give a local folder."
        ) from None
    try:
        return content, set(HfApi().list_repo_files(model, revision=revision))
    except Exception:  # likewise; without a network it is httpx's ConnectError
        return content, _files_below(index.parent)
