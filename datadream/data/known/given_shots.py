"""Shots that somebody else sampled: folders by class, as the authors' code has them in real_train_fewshot/seed0."""

from __future__ import annotations

import re
from collections import defaultdict

import fsspec

from datadream.data.known.place import Place
from datadream.data.listing import Listing, one_spelling
from datadream.data.names import WORDNET_ID, imagenet_wordnet, readable_names

AUTHORS_NAMES = {
    "projectile missile": "n04008634",
    "sunglasses": "n04355933",  # CLIP's authors call two classes so, and ours is the other one
    "dark sunglasses": "n04356056",
}
"""Folders of ImageNet whose names in the authors' code are of other classes in CLIP's, or of none."""


def given_shots(fs: fsspec.AbstractFileSystem, root: str, folder: str, listing: Listing) -> list[tuple[str, int]]:
    """Photos in the folders of `folder` with the labels of `listing`; paths count from `root`, as they do there.

    A folder is called as its class is here, in prompts or in the data set's own folders; words may be in any order,
    as makers and years of cars are. Raises FileNotFoundError when there is no such folder, ValueError when a folder
    is of no class or a class has no photo.
    """
    place, labels = Place(fs, root), _labels(listing)
    if not place.folders(folder):
        raise FileNotFoundError(
            f"data.shots is {folder!r}: {root!r} has no such folder with folders of classes in it. Give its path from "
            "data.source."
        )
    shots = []
    for outer in place.folders(folder):
        # The class F-16A/B makes a folder in a folder: what holds photos is a class, at either depth.
        for name in (outer, *(f"{outer}/{inner}" for inner in place.folders(f"{folder}/{outer}"))):
            if not (photos := place.images(f"{folder}/{name}")):
                continue
            label = labels.get(_words(name))
            if label is None:
                raise ValueError(
                    f"data.shots {folder!r} has a folder {name!r}, which is no class of data.dataset. Rename it."
                )
            shots += [(f"{folder}/{name}/{photo}", label) for photo in photos]
    if without := sorted(set(range(len(listing.class_names))) - {label for _, label in shots}):
        raise ValueError(
            f"data.shots {folder!r} has no photo for {len(without)} of {len(listing.class_names)} classes, the first "
            f"is {listing.class_names[without[0]]!r}. Add its folder."
        )
    return shots


def _labels(listing: Listing) -> dict[frozenset[str], int]:
    """Labels by the words of what a class's folder may be called."""
    classes = {name: label for label, name in enumerate(listing.class_names)}
    others: dict[frozenset[str], set[int]] = defaultdict(set)
    for path, label in listing.keys["pool"]:
        others[_words(path.split("/")[-2])].add(label)
    certain = dict(zip(readable_names(listing.class_names, None), classes.values(), strict=True)) | classes
    if any(WORDNET_ID.fullmatch(name) for name in classes):
        for name, word in imagenet_wordnet().items():
            if name in classes:
                others[_words(word)].add(classes[name])
        certain |= {name: classes[known] for name, known in AUTHORS_NAMES.items() if known in classes}
    # One word of WordNet's is two classes', and one folder may hold the photos of all.
    # Readable names and the folders' own come before them.
    unique = {words: min(labels) for words, labels in others.items() if len(labels) == 1}
    return unique | {_words(name): label for name, label in certain.items()}


def _words(name: str) -> frozenset[str]:
    return frozenset(re.split(r"[\s_/]+", one_spelling(name).casefold()))
