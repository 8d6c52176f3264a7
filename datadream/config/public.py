"""What of a config may be shown to others: dataset cards, pages, trackers and the provenance of published images.

The value of a knob may be a location, and a location tells more than a name: user names in home folders, hosts,
buckets, passwords, signed query strings. All outlets therefore take locations from here. The rule looks at the text
alone, never at this machine's files or users: the same config must give the same bytes everywhere.
"""

from __future__ import annotations

import itertools
import re
from typing import Any
from urllib.parse import unquote

from datadream.config.data import DataConfig
from datadream.config.experiment import ExperimentConfig

OWN_PHOTOS = "own photos"
OWN_NAMES = "own names"
OWN_TEXTS = "own texts"
OWN_MODEL = "own model"
OWN_METHOD = "own method"
OWN_RUN = "own run"
OWN_ADAPTERS = "own adapters"
# Folders, in lower case, whose sub-folders bear the names of users: /home, C:\Users, /run/media and so on.
USER_FOLDERS = {"home", "homes", "user", "users", "u", "media", "documents and settings"}
# Schemes whose first component is a folder and no host.
LOCAL_SCHEMES = ("file", "local")

_PLAIN_NAME = re.compile(r"\w[\w .,()+-]*")
_MODEL_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SCHEME = re.compile(r"(\w[\w+.-]*)://(.*)", re.DOTALL)


def public_config(config: ExperimentConfig) -> dict[str, Any]:
    """The knobs of a run as nested plain data, with locations reduced to names.

    Without `cluster` and `tracking`: they say where the work is done and who watches, and do not change the result.
    """
    values = config.model_dump(mode="json", exclude={"cluster", "tracking"})
    values["method"] = public_method(config.method)
    values["grid"]["methods"] = list(map(public_method, config.grid.methods))
    values["data"]["source"] = public_source(config.data.source)
    if config.images_from is not None:
        values["images_from"] = _last_name(config.images_from) or OWN_RUN
    if config.extends is not None:
        values["extends"] = _last_name(config.extends) or OWN_RUN
    if config.adapt.given is not None:
        values["adapt"]["given"] = _last_name(config.adapt.given) or OWN_ADAPTERS
    if config.data.shots is not None:
        values["data"]["shots"] = _last_name(config.data.shots) or OWN_PHOTOS
    if config.data.names is not None:
        values["data"]["names"] = _last_name(config.data.names) or OWN_NAMES
    for knob in ("captions", "descriptions"):
        if (file := values["data"][knob]) is not None:
            values["data"][knob] = _last_name(file) or OWN_TEXTS
    if config.data.captioner is not None:
        values["data"]["captioner"] = public_model(config.data.captioner)
    values["diffusion"]["model"] = public_model(config.diffusion.model)
    values["classify"]["model"] = public_model(config.classify.model)
    if config.classify.pretrained is not None:
        values["classify"]["pretrained"] = public_model(config.classify.pretrained)
    return values


def public_source(source: str) -> str:
    """``data.source`` by name: a known data set, an id of the Hub, or the last folder of its location, or else "own
    photos"."""
    if source.startswith("hf-hub:") and _MODEL_ID.fullmatch(source.removeprefix("hf-hub:").partition("@")[0]):
        return source.partition("@")[0]
    return _last_name(source) or OWN_PHOTOS


def public_dataset(data: DataConfig) -> str:
    """The photos by name: a data set of the paper, or else what is public of where they lie."""
    return data.dataset or public_source(data.source)


def public_method(method: str) -> str:
    """``method`` by name: ours and functions of modules as they are, those of a file with the file's name alone."""
    place, _, function = method.rpartition(":")
    return f"{_last_name(place) or OWN_METHOD}:{function}" if place.endswith(".py") else method


def public_model(model: str) -> str:
    """A model by name: ids of the Hub, of packages and of open_clip as they are, a file or folder by its last name.

    ``models/sd`` has the form of a Hub id, so it stays as well.
    """
    if model.startswith(("package://", "hf-hub:")) or _MODEL_ID.fullmatch(model):
        return model
    prefix = "local-dir:" if model.startswith("local-dir:") else ""
    return prefix + (_last_name(model.removeprefix(prefix)) or OWN_MODEL)


def _last_name(location: str) -> str:
    """The last component of a path or URL; empty where that may name a user, a host or a secret."""
    location = location.split("::")[-1]  # fsspec: what is before it reads inside what comes last
    url = _SCHEME.fullmatch(location)
    if url:
        scheme, rest = url.groups()
        rest = unquote(re.split(r"[?#]", rest)[0])
        has_host = scheme.lower() not in LOCAL_SCHEMES
    else:
        rest, has_host = location, location.startswith(("\\\\", "//"))
    names = [name for name in re.split(r"[/\\]", rest) if name not in ("", ".", "..")]
    # Words, in lower case, that must not appear in the name. Before the host is taken off: //home/alice may be a path
    # with one slash too many.
    private = {name.lower() for folder, name in itertools.pairwise(names) if folder.lower() in USER_FOLDERS}
    private |= {name[1:].lower() for name in names if name.startswith("~")}
    if has_host and names:
        private |= set(re.split(r"[@:]", names.pop(0).lower()))
    name = names[-1] if names else ""
    # A list of what is allowed, so that credentials, drives and queries in forms not thought of stay out as well.
    is_public = _PLAIN_NAME.fullmatch(name) and not any(word in name.lower() for word in private - {""})
    return name if is_public else ""
