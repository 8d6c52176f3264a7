"""Generated images beside photos, as `datadream images` measured them: distances, and the images most like a shot."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from datadream.config import ExperimentConfig, public_method, public_model
from datadream.data.shards import stream_images
from datadream.report.curves import Chart, fid_by_class
from datadream.report.pictures import Picture, photos, thumbnail
from datadream.report.records import in_order, mean_and_sd
from datadream.report.tables import MAX_CLASS_ROWS, Cells, FigureCell
from datadream.report.text import aligned, count, number
from datadream.run.layout import DATASET, IMAGES, ClosestPair, DatasetMarker, ImagesRecord, shard_file
from datadream.run.store import RunStore

MEASURES = {
    "fid": ("FID", 1),
    "kid": ("KID", 3),
    "cmmd": ("CMMD", 3),
    "precision": ("Precision", 2),
    "recall": ("Recall", 2),
    "density": ("Density", 2),
    "coverage": ("Coverage", 2),
    "recognised": ("Recognised", 2),
}
"""Of each measure its name and the decimals that are shown."""
AGAINST = {
    "held-out": "photos that are neither shots nor test photos",
    "train": "training and validation photos, the shots among them",
    "test": "test photos",
}


@dataclass(frozen=True, slots=True)
class DistanceRow:
    """The images of one method at one number of shots, over its seeds."""

    method: str
    shots: int
    n_images: int
    n_photos: int
    figures: list[FigureCell]
    """In the order of MEASURES."""
    fid_by_class: dict[str, float | None]
    """Mean over seeds."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A shot and the generated image most like it."""

    name: str
    similarity: str
    photo: Picture | None
    """None where it cannot be read here."""
    image: Picture


@dataclass(frozen=True, slots=True)
class ImagesSection:
    """What the page says of the images."""

    model: str
    against: str
    rows: list[DistanceRow]
    classes: list[tuple[str, list[str]]]
    """Class and its FID by method, the worst first."""
    methods: list[str]
    """The columns of `classes`."""
    n_classes: int
    chart: Chart | None
    pairs: list[Pair]
    similarity: list[tuple[str, list[str]]]
    """Of images and of photos: median, 95th percentile and maximum."""


def images_section(cells: Cells, shown: Sequence[tuple[RunStore, ExperimentConfig]]) -> ImagesSection | None:
    """None where nothing was measured. Pairs are those of the first run that is `shown`."""
    found = measured(cells)
    if not found:
        return None
    rows, first = distance_rows(found), found[0][1]
    most = {row.method: row for row in rows if row.shots == max(other.shots for other in rows)}
    names = list(next(iter(most.values())).fid_by_class)
    worst = sorted(names, key=lambda name: -max(row.fid_by_class[name] or 0.0 for row in most.values()))
    store, config, record = next(
        ((store, config, record) for store, config in shown for other, record in found if other[0] is store),
        (*found[0][0], first),
    )
    return ImagesSection(
        model=" ".join(map(public_model, filter(None, (first.model, first.pretrained)))),
        against=AGAINST[first.against],
        rows=rows,
        classes=[(n, [number(row.fid_by_class[n]) for row in most.values()]) for n in worst[:MAX_CLASS_ROWS]],
        methods=list(most),
        n_classes=len(names),
        chart=fid_by_class({method: list(row.fid_by_class.values()) for method, row in most.items()}),
        pairs=_pairs(store, config, record),
        similarity=[(name, [number(v, 3) for v in values]) for name, values in record.shot_similarity.items()],
    )


def measured(cells: Cells) -> list[tuple[tuple[RunStore, ExperimentConfig], ImagesRecord]]:
    """What is known of the runs' images, of those that were measured as the first one was."""
    found = [(cell, ImagesRecord.from_json(cell[0].read_json(IMAGES))) for cell in cells if cell[0].exists(IMAGES)]
    hows = [(record.model, record.pretrained, record.against) for _, record in found]
    return [each for each, how in zip(found, hows, strict=True) if how == hows[0]]


def distance_rows(found: Sequence[tuple[tuple[RunStore, ExperimentConfig], ImagesRecord]]) -> list[DistanceRow]:
    """A row for each method and number of shots."""
    groups: dict[tuple[str, int], list[ImagesRecord]] = defaultdict(list)
    for (_, config), record in found:
        groups[public_method(config.method), config.data.n_shots].append(record)
    methods = in_order(method for method, _ in groups)
    rows = []
    for (method, shots), records in sorted(groups.items(), key=lambda item: (methods.index(item[0][0]), item[0][1])):
        figures = []
        for measure, (_, decimals) in MEASURES.items():
            mean, sd = mean_and_sd(record.all.get(measure) for record in records)
            figures.append(FigureCell(number(mean, decimals), "" if sd is None else number(sd, decimals)))
        by_class: dict[str, list[float | None]] = defaultdict(list)
        for record in records:
            for entry in record.classes:
                by_class[entry["name"]].append(entry["fid"])
        fid_by_class = {name: mean_and_sd(values)[0] for name, values in by_class.items()}
        n_images, n_photos = (records[0].all[name] for name in ("n_images", "n_photos"))
        rows.append(DistanceRow(method, shots, n_images, n_photos, figures, fid_by_class))
    return rows


def images_text(cells: Cells) -> str:
    """The table for the terminal."""
    rows, lines = distance_rows(measured(cells)), [["method", "shots", *(name for name, _ in MEASURES.values())]]
    for row in rows:
        figures = [f"{each.mean} ± {each.sd}" if each.sd else each.mean for each in row.figures]
        lines.append([row.method, str(row.shots), *figures])
    record = measured(cells)[0][1]
    title = f"{count(rows[0].n_images, 'image')} against {rows[0].n_photos:,} {AGAINST[record.against]}"
    return "\n".join([title, "", *aligned(lines)])


def _pairs(store: RunStore, config: ExperimentConfig, record: ImagesRecord) -> list[Pair]:
    pairs = [ClosestPair.from_json(each) for each in record.closest]
    images = _read_images(store, {(pair.shard, pair.image) for pair in pairs})
    shots = photos(config, [pair.photo for pair in pairs], "shots beside the images most like them")
    names = [entry["name"] for entry in record.classes]
    return [
        Pair(names[pair.label], number(pair.similarity, 3), photo, images[pair.shard, pair.image])
        for pair, photo in zip(pairs, shots, strict=True)
        if (pair.shard, pair.image) in images
    ]


def _read_images(store: RunStore, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], Picture]:
    """Images of a run's dataset by shard and key; none where they were published anew since, or are gone."""
    if not store.exists(DATASET):
        return {}
    marker = DatasetMarker.from_json(store.read_json(DATASET))
    found = {}
    for shard in sorted({shard for shard, _ in wanted} & set(marker.shards)):
        left = {key for each, key in wanted if each == shard}
        with store.fs.open(store.path(shard_file(shard)), "rb") as file:
            for key, _, data in stream_images(file, marker.format):
                if key in left:
                    found[shard, key] = thumbnail(Image.open(io.BytesIO(data)))
                    left.discard(key)
                if not left:
                    break
    return found
