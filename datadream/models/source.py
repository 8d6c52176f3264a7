"""Where a model's files are: a Hub id, a local folder, or a folder inside an installed package."""

from __future__ import annotations

import importlib.resources

PACKAGE_SCHEME = "package://"


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
