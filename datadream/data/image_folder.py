"""Folders of photos as people have them: which photos there are of which class and part, and what was left out."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

import fsspec

from datadream.data.decode import IMAGE_SUFFIXES
from datadream.data.listing import PART_NAMES, Listing, one_spelling, part_of

LITTER = ("__macosx", "@eadir", "lost+found", "$recycle.bin", "thumbs.db", "desktop.ini")
"""What systems leave in folders, beside hidden names such as .DS_Store, ._1.jpg and .ipynb_checkpoints."""
MOST_DEPTH = 8
"""Folders inside a class folder; links that lead in a circle end here."""


def list_photos(fs: fsspec.AbstractFileSystem, root: str) -> Listing:
    """Photos of <root>/<class>/..., or of <root>/<part>/<class>/..., each class with all folders inside it.

    Parts are train, val and test in their usual spellings; a folder that is called so and holds photos itself is a
    class. Without a train folder, the folders beside val and test are the classes. Raises ValueError when there are
    no two classes, when a class has no photo, or when val or test has a class that training lacks.
    """
    listing = Listing()
    parts, classes = _parts_and_classes(fs, root, listing)
    if len(classes) < 2:
        shown = f" ({', '.join(classes)})" if classes else ""
        raise ValueError(
            f"image folder {parts['pool']!r} has {len(classes)} class folders{shown}: need at least 2, one per class."
        )
    # Sorted, so that labels are the same on every file system.
    listing.class_names = tuple(sorted(classes))
    labels = {name: label for label, name in enumerate(listing.class_names)}
    for part, folder in sorted(parts.items(), key=lambda item: item[0] != "pool"):
        own = classes if part == "pool" else _folders(fs, folder, listing)
        if unknown := [name for name in own if name not in labels]:
            raise ValueError(
                f"folder {folder!r} has class {unknown[0]!r}, which the training photos lack. Known: "
                f"{', '.join(listing.class_names[:12])}."
            )
        listing.keys[part] = [
            (posixpath.relpath(path, root), labels[name])
            for name in sorted(own)
            for path in sorted(_photos(fs, own[name], listing))
        ]
    filled = {label for _, label in listing.keys["pool"]}
    for name, label in labels.items():
        if label not in filled:
            left_out = ", ".join(f"{count} {reason}" for reason, count in listing.left_out.items())
            raise ValueError(
                f"class folder {classes[name]!r} holds no image (left out: {left_out or 'nothing'}): "
                f"need {', '.join(IMAGE_SUFFIXES)} files. Add photos or remove the folder."
            )
    return listing


def list_classes(fs: fsspec.AbstractFileSystem, root: str) -> tuple[str, ...]:
    """Names of the class folders alone, in the order of their labels."""
    return tuple(sorted(_parts_and_classes(fs, root, Listing())[1]))


def is_class_folder(fs: fsspec.AbstractFileSystem, root: str, folder: str) -> bool:
    """Whether `folder`, which need not be there yet, is or lies in what would be one of the class folders."""
    first = posixpath.relpath(folder, root).split("/")[0]
    if first == ".." or (first != "." and is_litter(first)):
        return False
    parts = _parts_and_classes(fs, root, Listing())[0]
    return first == "." or parts["pool"] == root or posixpath.join(root, first) in parts.values()


def _parts_and_classes(
    fs: fsspec.AbstractFileSystem, root: str, listing: Listing
) -> tuple[dict[str, str], dict[str, str]]:
    """Paths of the parts by their names, and of the training part's class folders by theirs."""
    folders = _folders(fs, root, listing)
    parts: dict[str, str] = {}
    for part in PART_NAMES:
        for name, folder in folders.items():
            if part in parts or part_of(name) != part:
                continue
            # A class may be called train or test, as beside bus and car: a part holds folders in place of photos.
            entries = [posixpath.basename(entry["name"]) for entry in fs.ls(folder, detail=True)]
            holds_photos = any(name.lower().endswith(IMAGE_SUFFIXES) and not is_litter(name) for name in entries)
            if not holds_photos and _folders(fs, folder, Listing()):
                parts[part] = folder
    beside = [name for name in folders if folders[name] not in parts.values()]
    if "pool" not in parts:
        return {**parts, "pool": root}, {name: folders[name] for name in beside}
    for name in beside:
        listing.left_out[f"folder {name}/ beside {posixpath.basename(parts['pool'])}/"] += 1
    return parts, _folders(fs, parts["pool"], listing)


def _folders(fs: fsspec.AbstractFileSystem, folder: str, listing: Listing) -> dict[str, str]:
    """Paths of the folders in a folder by their names, linked ones too, which fsspec lists as something else."""
    found: dict[str, str] = {}
    for entry in fs.ls(folder, detail=True):
        path = entry["name"].rstrip("/")
        name = one_spelling(posixpath.basename(path))
        if path.rstrip("/") == folder.rstrip("/") or not _is_folder(fs, entry):
            continue
        if is_litter(name):
            listing.left_out["system folders"] += 1
            continue
        _check_name(path)
        if name in found:
            raise ValueError(f"folders {found[name]!r} and {path!r} have the same name in two spellings. Join them.")
        found[name] = path
    return found


def _photos(fs: fsspec.AbstractFileSystem, folder: str, listing: Listing, depth: int = 0) -> Iterator[str]:
    """Photos in a class folder and in folders inside it."""
    for entry in fs.ls(folder, detail=True) if depth < MOST_DEPTH else ():
        path = entry["name"].rstrip("/")
        name = posixpath.basename(path)
        if path == folder.rstrip("/"):  # object stores list a folder's own marker
            continue
        if is_litter(name):
            listing.left_out["system files"] += 1
        elif _is_folder(fs, entry):
            yield from _photos(fs, path, listing, depth + 1)
        elif not name.lower().endswith(IMAGE_SUFFIXES):
            listing.left_out[f"{posixpath.splitext(name)[1].lower() or 'no suffix'} files"] += 1
        elif entry["type"] != "file" and not fs.exists(path):
            listing.left_out["links to nothing"] += 1
        else:
            _check_name(path)
            yield path


def _is_folder(fs: fsspec.AbstractFileSystem, entry: dict) -> bool:
    # fsspec lists a linked folder as "other" (2026.9), though isdir says that it is one.
    return entry["type"] == "directory" or (entry["type"] != "file" and fs.isdir(entry["name"]))


def is_litter(name: str) -> bool:
    """Whether a file or folder is one that no person put there, or that is hidden."""
    return name.startswith(".") or name.lower() in LITTER


def _check_name(path: str) -> None:
    """Raises ValueError for a name that old archives write in another encoding, which no record could hold."""
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = path.encode(errors="surrogateescape").decode(errors="replace")
        raise ValueError(f"the name of {shown!r} is not in UTF-8. Rename it.") from None
