"""Methods that users bring: a function of a module that Python finds, or of a file.

They run where plans are made, on the driver; workers get the plan alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from datadream.config import nearest
from datadream.hashing import sha256
from datadream.methods.base import Method


def load_method(name: str) -> Method:
    """The function of ``package.module:function`` or ``path/to/file.py:function``.

    Raises ValueError when it is not there, is no Python, or does not take the shots and the config.
    """
    place, _, function = name.rpartition(":")
    try:
        module = _file(place) if place.endswith(".py") else _module(place)
    except SyntaxError as error:
        raise ValueError(
            f"method {name!r}: {error.filename}, line {error.lineno}, is no Python: {error.msg}."
        ) from None
    found = getattr(module, function, None)
    own = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
    if not callable(found):
        raise ValueError(f"method {name!r}: {place!r} has no function {function!r}. {nearest(function, own)}".strip())
    try:
        inspect.signature(found).bind(None, None)
    except TypeError:
        expected = f"{function}(few_shot, config), which returns a datadream.methods.Plan"
        raise ValueError(f"method {name!r} cannot be called with two values: expected {expected}.") from None
    return found


def method_sha256(name: str) -> str:
    """Hash of the file that defines the function, by which a run notices that it has changed; raises as
    `load_method`."""
    module = sys.modules[load_method(name).__module__]
    return sha256(Path(module.__file__ or "").read_bytes())


def _module(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if not error.name or not f"{place}.".startswith(f"{error.name}."):
            raise  # a module that the user's own asks for
        raise ValueError(
            f"method: Python finds no module {place!r}. Install its package, add its folder to PYTHONPATH, or write "
            "path/to/file.py:function."
        ) from None


def _file(place: str) -> ModuleType:
    if not Path(place).is_file():
        raise ValueError(f"method: there is no file {place!r}. Expected path/to/file.py:function.")
    # Anew each time, because it may have changed. By its path, for two folders may have files of one name.
    name = f"datadream_method_{sha256(str(Path(place).resolve()).encode())[:16]}"
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None
    assert spec.loader is not None
    # Registered while it runs, or dataclasses in it would not find their module.
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
