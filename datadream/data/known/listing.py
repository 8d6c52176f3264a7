"""The photos of a known data set by class and part, checked against what is published about it."""

from __future__ import annotations

import logging
import posixpath

import fsspec

from datadream.data.known.layouts import coop_split
from datadream.data.known.place import Place
from datadream.data.known.sets import GUIDE, Counts, KnownSet
from datadream.data.listing import Listing

log = logging.getLogger(__name__)


def list_known(fs: fsspec.AbstractFileSystem, root: str, known: KnownSet) -> Listing:
    """Photos of a data set that was unpacked into `root`, or into a folder of its usual name below it; their paths
    count from `root`.

    CoOp's split where its file is there, else the official one, and of a set that has none all photos in the pool.
    Raises FileNotFoundError when the set is not there, and ValueError when a file cannot be read, when folders are not
    those of the classes, when a photo is in two parts or missing, and when the numbers are not the published ones.
    """
    place = Place.find(fs, root, known.folders, known.photos)
    if place is None:
        raise FileNotFoundError(
            f"{known.title} is not in {root!r}: there is no folder {' or '.join(known.photos)}, nor in one called "
            f"{', '.join(known.folders)}. Set data.source to where it was unpacked; get it at {known.url} ({GUIDE})."
        )
    listing, counts = _read(place, known)
    _check_listing(known, listing, counts)
    listed = {path for photos in listing.keys.values() for path, _ in photos}
    folders = {posixpath.dirname(path) for path in listed}
    there = {posixpath.join(folder, name) for folder in folders for name in place.images(folder)}
    if missing := sorted(listed - there):
        raise ValueError(
            f"{known.title}: {len(missing):,} of {len(listed):,} photos are not in {place.root!r}, the first is "
            f"{missing[0]!r}. Unpack it again ({known.url})."
        )
    if beyond := there - listed:
        listing.left_out["photos that no part has"] += len(beyond)
    inside = posixpath.relpath(place.root, posixpath.normpath(root))
    listing.keys = {
        part: [(posixpath.normpath(posixpath.join(inside, path)), label) for path, label in photos]
        for part, photos in listing.keys.items()
    }
    return listing


def _read(place: Place, known: KnownSet) -> tuple[Listing, Counts]:
    """What is found, and how much should be."""
    try:
        if known.coop and place.has(known.coop.file):
            return coop_split(place, known.coop.file, known.coop.paths_from), known.coop.counts
        listing = known.official(place)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{known.title}: {error}. Beside {known.photos[0]}/ it needs {known.needs}; get it at {known.url} "
            f"({GUIDE})."
        ) from None
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        raise ValueError(
            f"{known.title} in {place.root!r} is not as it is published: {' '.join(reason.split())}. Unpack it again "
            f"({known.url}), or leave data.dataset out to take a folder as it is."
        ) from None
    if known.coop:
        split = "the official split is taken" if listing.keys.get("test") else "there is no official split"
        log.warning(
            "%s: %s is not in %r, so %s; published figures are of CoOp's (%s).",
            *(known.title, known.coop.file, place.root, split, GUIDE),
        )
    return listing, known.official_counts


def _check_listing(known: KnownSet, listing: Listing, published: Counts) -> None:
    """Raises ValueError where a photo is listed twice, so that training, validation and test photos never overlap,
    or is outside of the data set, and where the numbers are not the published ones."""
    first: dict[str, str] = {}
    for part, photos in listing.keys.items():
        for path, _ in photos:
            if path in first or path.startswith(("/", "../")):
                where = f"in {first[path]} already" if path in first else "outside of it"
                raise ValueError(
                    f"{known.title}: photo {path!r} of {part} is {where}. Get the file of its split again ({GUIDE})."
                )
            first[path] = part
    found = Counts(len(listing.class_names), *(len(listing.keys.get(part, ())) for part in ("pool", "val", "test")))
    if found != published:
        raise ValueError(
            f"{known.title}: found {found} photos, but {published} are published. Unpack it again ({known.url}), or "
            "leave data.dataset out to take a folder as it is."
        )
