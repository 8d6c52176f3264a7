"""Where everything of a run lies, by paths relative to its folder, and what each of its JSON files holds.

The files are the contract between the stages, versions and people: a field may be added with a default, never renamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Self

from datadream.hashing import sha256
from datadream.methods.chunks import CHUNKS_FOLDER

CONFIG = "config.json"
LOCK = "lock.json"
"""Who writes the run; there only while somebody does."""
FEW_SHOT = "few_shot.json"
INTAKE = "intake.json"
"""What was taken of the photos and what was left out, for people to read."""
ADAPTERS = "adapters"
ADAPTER_WEIGHTS = "pytorch_lora_weights.safetensors"
"""The name by which diffusers finds LoRA weights in a folder."""
ADAPTER_INDEX = "adapters/index.json"
FAILED_ADAPTERS = "adapters/failed.json"
ADAPTER_GROUP = "stages/adapt-group.json"
ADAPTER_WORKERS = "stages/adapt-workers.json"
"""How busy the workers of the last start were."""
CHUNKS = CHUNKS_FOLDER
FAILED_CHUNKS = "stages/generate-failed.json"
GENERATE_BATCH = "stages/generate-batch.json"
GENERATE_PLAN = "stages/generate-plan.json"
"""Which plan a run's chunks belong to."""
FAILED_FEATURES = "stages/select-failed.json"
FAILED_WINDOWS = "stages/publish-failed.json"
FAILED_CAPTIONS = "stages/caption-failed.json"
FEATURES = "features"
CANDIDATES = "stages/candidates.json"
"""How many candidates of each class are asked for so far, where filters choose images."""
DATASET_FOLDER = "dataset"
SELECTION = "dataset/selection.json"
"""The marker that the images to publish are chosen."""
WINDOWS = "stages/publish"
"""Markers of the windows of a dataset that is being published."""
DATASET = "dataset/dataset.json"
CARD = "dataset/README.md"
CLASSIFIERS = "classifier"
FAILED_CLASSIFIERS = "stages/classify-failed.json"
FAILED_TRIALS = "stages/search-failed.json"
LOGITS = "logits.parquet"
METRICS = "metrics.json"
IMAGES = "images.json"
"""What `datadream images` found: an ImagesRecord."""
PAGE = "report/index.html"
EVENTS = "stages/events.jsonl"
"""When the stages began, went on and ended, over all starts: EventRecords, a line each, the oldest left out."""
SCRATCH = ".ray-train-"
"""How the folders begin that a stage uses while it runs, and removes."""
STAGES = ("adapt", "generate", "classify")


def adapter_weights(adapter_id: str) -> str:
    """The weights of an adapter."""
    return f"{ADAPTERS}/{adapter_id}/{ADAPTER_WEIGHTS}"


def adapter_marker(adapter_id: str) -> str:
    """The marker that an adapter is trained: an AdapterMarker."""
    return f"{ADAPTERS}/{adapter_id}/adapter.json"


def adapter_samples(adapter_id: str, step: int) -> str:
    """The images that an adapter made after so many steps of its training (adapt.samples_every)."""
    return f"{ADAPTERS}/{adapter_id}/samples/{step:06d}.png"


def adapter_checkpoint(adapter_id: str) -> str:
    """What the training of an adapter goes on from when it is interrupted; of no use once it is done."""
    return f"{ADAPTERS}/{adapter_id}/checkpoint.pt"


def caption_marker(photo: str) -> str:
    """The caption that data.captioner wrote of a photo: a CaptionRecord, for all runs of a table."""
    return f"captions/{sha256(photo.encode())[:16]}.json"


def features_file(name: str) -> str:
    """CLIP features of a chunk, of shots or of prompts."""
    return f"{FEATURES}/{name}.npy"


def features_marker(name: str) -> str:
    """The marker that these features are encoded: a FeaturesMarker."""
    return f"{FEATURES}/{name}.json"


def shard_file(name: str) -> str:
    """A published file, by its path in the dataset's folder."""
    return f"{DATASET_FOLDER}/{name}"


def window_marker(plan: str, number: int) -> str:
    """The marker that a window of shards is written: a list of ShardRecords; gone once the dataset is published.

    It bears the plan's hash: who moves a half-published dataset away to generate another leaves it behind.
    """
    return f"{WINDOWS}/{plan[:16]}-{number:05d}.json"


def classifier_marker(setting: str) -> str:
    """The marker that a setting's classifier is trained and tested: a ClassifierMarker."""
    return f"{CLASSIFIERS}/{setting}/{METRICS}"


def classifier_logits(setting: str) -> str:
    """Key, label and logits of every test photo; none without test photos."""
    return f"{CLASSIFIERS}/{setting}/{LOGITS}"


def classifier_checkpoint(setting: str, training: str) -> str:
    """What a training of a setting goes on from when it is interrupted; of no use once the setting is done."""
    return f"{CLASSIFIERS}/{setting}/checkpoints/{training}.pt"


def search_marker(setting: str) -> str:
    """The marker that a setting's knobs are chosen: a SearchRecord."""
    return f"{CLASSIFIERS}/{setting}/search.json"


def trial_marker(setting: str, steps: int, number: int) -> str:
    """The marker that a trial of a search is finished: a TrialRecord."""
    return f"{CLASSIFIERS}/{setting}/search/{steps:06d}-{number:04d}.json"


def stage_seconds(stage: str) -> str:
    """How long all starts of a stage took together: StageSeconds."""
    return f"stages/{stage}.json"


def progress_file(stage: str) -> str:
    """Where a running stage says how far it is: a ProgressRecord."""
    return f"stages/{stage}-running.json"


def _absent(default: Any = None) -> Any:
    """A field that the file holds only where it has something to say."""
    # Nulls would change the hash of a dataset.json that an older version wrote, by which `Cell.plan_hash` knows its
    # images where it names no plan.
    return field(default=default, metadata={"absent": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One JSON file of a run. Fields of later versions are passed over; those that are missing have their default."""

    def to_json(self) -> dict[str, Any]:
        """The file's content, fields in the order in which they are declared."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        absent = {f.name for f in fields(self) if "absent" in f.metadata and values[f.name] is None}
        return {name: _plain(value) for name, value in values.items() if name not in absent}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises ValueError naming a field that is missing."""
        for f in fields(cls):
            if f.name not in value and f.default is MISSING and f.default_factory is MISSING:
                raise ValueError(f"a {cls.__name__} without {f.name!r}: the file was written by another version.")
        return cls(**{f.name: value[f.name] for f in fields(cls) if f.name in value})


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        # Asked first of numbers: a confusion matrix of ImageNet's classes holds a million.
        return [each if isinstance(each, (int, float, str)) else _plain(each) for each in value]
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterMarker(Record):
    """adapter.json"""

    adapter_id: str
    spec: Mapping[str, Any]
    spec_sha256: str
    weights_sha256: str
    base_model: str
    rank: int
    steps: int
    losses: Sequence[tuple[int, float]]
    """(step, mean loss of the steps since the last entry)."""
    vae_encodes: int
    seconds: float
    versions: Mapping[str, str]
    given: str | None = _absent()
    """The file of adapt.given that it is, which was not trained here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterEntry(Record):
    """One adapter of index.json"""

    adapter_id: str
    file: str
    sha256: str
    prompts: Sequence[str]
    n_photos: int
    steps: int
    last_loss: float | None
    """None of a given one."""
    rank: int
    base_model: str
    seconds: float
    given: str | None = _absent()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterGroup(Record):
    """How many adapters a worker trains side by side; fixed at the first start, for the group changes rounding."""

    adapters_per_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerUsage(Record):
    """Workers, seconds from the first lease of each to the last sign of any, and how many of these they worked."""

    workers: float
    seconds: float
    busy_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateBatch(Record):
    """Images in a batch; fixed by the first measurement of a run, for the batch changes an image's last bits."""

    batch_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkMarker(Record):
    """<chunk>.json"""

    n_images: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionRecord(Record):
    """captions/<hash of the photo's key>.json"""

    photo: str
    """Its key."""
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesMarker(Record):
    """<features>.json"""

    n: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratePlan(Record):
    """Hash of what makes the images of a run."""

    plan: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord(Record):
    """One published file."""

    name: str
    sha256: str
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSelectionRecord(Record):
    """One class of selection.json: what became of its candidates, and which images are published."""

    label: int
    name: str
    wanted: int
    n_images: int
    candidates: int
    rejected: Mapping[str, int]
    shot_similarity: float | None
    images: Sequence[int]
    """Indices among the images of the class."""
    clip_scores: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionTotals(Record):
    """Candidates of all classes, those left out by reason, the classes that have too few images, and the class that
    kept the smallest share of its candidates."""

    candidates: int
    rejected: Mapping[str, int]
    short: Mapping[str, int]
    worst: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetMarker(Record):
    """dataset.json"""

    plan: str | None = _absent()
    format: str
    image_format: str | None = _absent()
    n_images: int
    counts: Sequence[int] | None = _absent()
    """Images of each class, by label, where no filters chose them; a method of the user's may plan fewer of some."""
    class_names: Sequence[str]
    shards: Sequence[str]
    """Paths in the dataset's folder, sorted."""
    sha256: Sequence[str] | None = _absent()
    n_bytes: Sequence[int] | None = _absent()
    """Of each shard. Versions before it did not tell."""
    selection: Mapping[str, Any] | None = _absent()
    """SelectionTotals, where filters chose the images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord(Record):
    """One combination of a search, trained for one rung."""

    number: int
    knobs: Mapping[str, float]
    steps: int
    val_top1: float | None
    """In percent; None when training diverged."""
    diverged: str | None = _absent()
    chosen_by: str | None = _absent()
    best_step: int | None = _absent()
    curve: Sequence[Mapping[str, Any]] | None = _absent()
    seconds: float | None = _absent()


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRecord(Record):
    """search.json: the knobs that were chosen, and all trials."""

    knobs: Mapping[str, float]
    steps: int
    val_top1: float | None
    n_trials: int
    trials: Sequence[Mapping[str, Any]]
    """knobs, steps and val_top1 of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierMarker(Record):
    """metrics.json of a setting; accuracies in percent."""

    setting: str
    n_test: int = 0
    top1: float | None
    top5: float | None = None
    macro: float | None = None
    ece: float | None = None
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    per_class: Sequence[Mapping[str, Any]] | None = None
    confusion: Sequence[Sequence[int]] | None = None
    chosen_by: str | None = None
    val_top1: float | None = None
    n_val: int = 0
    best_step: int = 0
    starts: Sequence[int] = ()
    curve: Sequence[Mapping[str, Any]] = ()
    seconds: float = 0.0
    n_synthetic: int = 0
    n_real: int = 0
    gaussian_weight: float | None = _absent()
    search: Mapping[str, Any] | None = _absent()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDistances(Record):
    """Images against photos, of one class or of all; what needs more of either than there are is None."""

    name: str
    n_images: int
    n_photos: int
    fid: float | None
    kid: float | None
    cmmd: float | None
    precision: float | None
    recall: float | None
    density: float | None
    coverage: float | None
    recognised: float | None = _absent()
    """Share of images that the classifier of photos alone takes for their class, where the run has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosestPair(Record):
    """A generated image and the shot of its class that it resembles most."""

    label: int
    shard: str
    """Path in the dataset's folder."""
    image: str
    """Key of the image in the shard."""
    photo: str
    similarity: float
    """Cosine of both features."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesRecord(Record):
    """images.json: generated images beside photos, by the features of a model."""

    model: str
    pretrained: str | None
    against: str
    """Which photos the images are compared with: held-out, train or test."""
    plan: str | None
    """Of the dataset whose images these are."""
    all: Mapping[str, Any]
    """ImageDistances of all classes together."""
    classes: Sequence[Mapping[str, Any]]
    """ImageDistances of each class, by label."""
    shot_similarity: Mapping[str, Sequence[float]]
    """To the nearest shot of their class, of `images`, and of `photos` where there are any: median, 95th percentile
    and maximum."""
    closest: Sequence[Mapping[str, Any]]
    """ClosestPairs, the most similar first."""
    judge: str | None = _absent()
    """Hash of the marker of the classifier that `recognised` is of."""
    photos: str | None = _absent()
    """Hash of the names of the photos that the images are compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSeconds(Record):
    """Of all starts of a stage, those that failed included; when the last one ended, and on what."""

    seconds: float
    ended: str | None = _absent()
    """Date and time in UTC, to the minute."""
    hardware: Mapping[str, Any] | None = _absent()
    """`workers`, what `each` had, and `nodes`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord(Record):
    """How far a stage was when it began or ended, or in between."""

    time: float
    """Seconds since the epoch."""
    stage: str
    state: str
    """begun, running, done or stopped."""
    done: int
    total: int
    unit: str
    facts: Mapping[str, float | str]
    """Such as the current loss, the number of failures, and units per second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressRecord(Record):
    """What a running stage last said."""

    text: str
    time: float
    """Seconds since the epoch."""
    done: int
    numbers: Mapping[str, float]
