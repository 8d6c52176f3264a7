"""Data sets of the library `datasets`: on the Hub, as it saves them, Parquet files, and photos with a metadata file.

The library is optional, and decodes nothing here: photos are decoded as all others are.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec

from datadream.data.decode import IMAGE_SUFFIXES
from datadream.data.listing import Listing, part_of
from datadream.data.photo_list import LABEL_COLUMNS, PATH_COLUMNS

HUB = "hf-hub:"
"""What stands before the Hub's id of a data set, which may end in @revision."""
IMAGE, LABEL = "image", "label"
"""What the two columns are called here."""
_ONE_LOADS = threading.Lock()


def is_saved(folder: Path) -> bool:
    """Whether a local folder is one that the library reads and that holds no folders of classes."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return True
    below = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    parts = [path for path in below if part_of(path.name)]
    for place in (folder, *parts):
        # Labels in a file beside the photos; where no photo is beside it, it does not speak of these folders.
        if any((place / f"metadata.{suffix}").is_file() for suffix in ("csv", "jsonl", "parquet")) and any(
            path.suffix.lower() in IMAGE_SUFFIXES for path in place.iterdir()
        ):
            return True
    # Parquet files beside folders of classes are somebody's notes on these.
    has_rows = any(next(place.glob("*.parquet"), None) for place in (folder, folder / "data", *parts))
    return has_rows and all(path.name == "data" or path in parts for path in below)


def list_examples(location: str) -> Listing:
    """Photos of a data set's splits, each by its split and place; raises ValueError when it cannot be loaded, when it
    has no photos, no labels or no two classes, and when a part has a class that training lacks."""
    splits = _splits(location)
    listing = Listing()
    found: dict[str, list[tuple[str, str]]] = {}
    for split, rows in splits.items():
        part = part_of(split) if len(splits) > 1 else "pool"
        if part is None:
            listing.left_out[f"photos of split {split}"] += len(rows)
            continue
        names = getattr(rows.features[LABEL], "names", None)
        for place, value in enumerate(rows[LABEL]):
            # Test sets of competitions hide their labels.
            if value is None or (names and value < 0):
                listing.left_out[f"photos without a label in split {split}"] += 1
            else:
                name = names[value] if names else str(value)
                found.setdefault(part, []).append((f"{split}/{place:06d}", name))
    listing.class_names = tuple(sorted({name for _, name in found.get("pool", ())}))
    if len(listing.class_names) < 2:
        raise ValueError(
            f"data.source {location!r} has {len(listing.class_names)} classes in its training split: need at least 2 "
            f"(splits: {', '.join(splits)})."
        )
    labels = {name: label for label, name in enumerate(listing.class_names)}
    for part, examples in found.items():
        if unknown := next((example for example in examples if example[1] not in labels), None):
            raise ValueError(
                f"data.source {location!r}: {unknown[0]} has class {unknown[1]!r}, which the training photos lack."
            )
        listing.keys[part] = [(key, labels[name]) for key, name in examples]
    return listing


def read_example(location: str, key: str) -> bytes:
    """The encoded photo of a key of `list_examples`; raises ValueError where its row has none."""
    split, _, place = key.rpartition("/")
    image = _splits(location)[split][int(place)][IMAGE]
    if image is None:
        raise ValueError(f"data.source {location!r}: {key} has no photo. Remove that row.")
    if image["bytes"] is not None:
        return image["bytes"]
    # Of photos in folders the library holds paths alone.
    with fsspec.open(image["path"]) as file:
        return file.read()


def _splits(location: str) -> Mapping[str, Any]:
    # Threads that read photos would each load a data set that none has loaded yet.
    with _ONE_LOADS:
        return _load(location)


@functools.cache
def _load(location: str) -> Mapping[str, Any]:
    """Splits with their encoded photos and labels alone, by the names IMAGE and LABEL."""
    if not find_spec("datasets"):
        raise ValueError(f"data.source {location!r} needs the library datasets: pip install 'datasets>=5,<6'.")
    import datasets

    folder = Path(location)
    try:
        if location.startswith(HUB):
            name, _, revision = location.removeprefix(HUB).partition("@")
            found = datasets.load_dataset(name, revision=revision or None)
        elif (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            found = datasets.load_from_disk(location)
        else:
            found = datasets.load_dataset(location)
    except Exception as error:  # of the Hub, of Arrow and of the library's own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"data.source {location!r} cannot be loaded by the library datasets: {reason}") from None
    loaded = {"train": found} if isinstance(found, datasets.Dataset) else dict(found)
    splits: dict[str, Any] = {}
    for split, rows in loaded.items():
        features = rows.features
        images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        images += [name for name in PATH_COLUMNS if name in features]
        labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        labels += [name for name in LABEL_COLUMNS if name in features]
        for what, columns in (("photos", images), ("labels", labels)):
            if not columns:
                raise ValueError(f"data.source {location!r} has no column of {what} (it has: {', '.join(features)}).")
        # Two columns alone: a row that is asked for is read in all of its columns. And encoded, because `decode_photo`
        # is the one decoder of photos.
        two = rows.select_columns([images[0], labels[0]]).rename_columns({images[0]: IMAGE, labels[0]: LABEL})
        splits[str(split)] = two.cast_column(IMAGE, datasets.Image(decode=False))
    return splits
