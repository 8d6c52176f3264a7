"""The photos."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Any, Literal

from PIL import ImageColor
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from datadream.config.section import Section

WHITE = "white"
"""What viewers show behind transparent photos."""


def _prompt_template(value: Any) -> str:
    """Checked here, because a template that does not fit would fail, or name no class, only when photos are read."""
    if not isinstance(value, str):
        raise ValueError('expected text. In YAML, quote a prompt that has a colon: prompt: "a photo: {name}"')
    try:
        fields = {field for _, field, _, _ in Formatter().parse(value) if field is not None}
        value.format(name="cat")
    except (ValueError, LookupError, AttributeError):  # a lone brace, an unknown field, a format that is not of text
        fields = set()
    if fields != {"name"}:
        raise ValueError(
            "expected {name} where the name of the class goes, and no other braces, such as 'a photo of a {name}'"
        )
    return value


PromptTemplate = Annotated[str, BeforeValidator(_prompt_template)]
"""Text with {name} in it."""


def _opaque_color(name: str) -> str:
    try:
        if len(ImageColor.getrgb(name)) == 3:
            return name
    except ValueError:
        pass
    raise ValueError("expected a colour that hides what is behind it, such as white, grey or '#808080'")


def _inside(folder: str) -> str:
    parts = folder.split("/")
    if folder.startswith("/") or ".." in parts or "://" in folder or not folder.strip("/"):
        raise ValueError("expected a folder inside data.source, such as real_train_fewshot/seed0")
    return folder.rstrip("/")


KnownDataset = Literal[
    "imagenet",
    "imagenet100",
    "caltech101",
    "pets",
    "cars",
    "flowers102",
    "food101",
    "aircraft",
    "sun397",
    "dtd",
    "eurosat",
]
"""The data sets of the paper, and a part of ImageNet."""


class DataConfig(Section):
    """The photos."""

    source: str = "digits"
    """`digits` (scikit-learn's scanned handwriting); an image folder, <root>/<class name>/ with photos in any usual
    format, with optional train, val and test folders above the classes; a list, .csv or .jsonl, with columns path,
    label and perhaps split, whose paths count from its folder; or with the library datasets a folder that it saved,
    one of Parquet files, or hf-hub:<owner>/<name>[@revision]. Without test, half of each class is for shots, a quarter
    for validation and a quarter for test."""
    dataset: KnownDataset | None = None
    """A data set of the paper, which data.source holds as it was unpacked: its splits (CoOp's split_zhou_<set>.json
    where it is there, else the official ones) and its names of classes. Unset: data.source is as said there."""
    shots: Annotated[str, AfterValidator(_inside)] | None = None
    """A folder in data.source with the shots of data.dataset to take, in a folder for each class, such as the authors'
    real_train_fewshot/seed0; they are in the place of the training photos. Unset: shots are sampled from these."""
    n_shots: int = Field(16, ge=1)
    """Real photos per class, K (paper: 1 to 16). Samples are nested: the 1-shot set is inside the 16-shot set."""
    names: str | None = None
    """A YAML or JSON file of names by class folder ("folder: name"). Unset: folders' names with blanks for
    underscores, and for ImageNet's WordNet ids the names of CLIP's prompts."""
    prompt: PromptTemplate = "a photo of a {name}"
    """Prompt of a class, to train and to generate with (paper, section 3); {name} stands for the name of the class.
    generate.prompts has others to generate with."""
    captions: str | None = None
    """A file of captions of the shots, which disef generates from: YAML or JSON ("photo: caption"), or .csv and .jsonl
    with columns path and caption. Photos go by their paths below the source or, where that is clear, by the names of
    their files; more photos than the shots may be there. few_shot.json keeps what was read."""
    captioner: str | None = None
    """A model of transformers that writes the captions instead, one for each shot, before the other work begins: a Hub
    id or local folder of BLIP and its like, such as Salesforce/blip-image-captioning-large, or of one that is asked,
    such as llava-hf/llava-1.5-7b-hf (DISEF)."""
    descriptions: str | None = None
    """A YAML or JSON file of descriptions by class ("class: [text, ...]"), which language generates from."""
    background: Annotated[str, AfterValidator(_opaque_color)] = WHITE
    """What shows through transparent photos, in training, in tests and in predict: a name of a colour, or #rrggbb."""

    @model_validator(mode="after")
    def _knobs_agree(self) -> DataConfig:
        if self.shots is not None and self.dataset is None:
            raise ValueError(f"shots is {self.shots!r}, but dataset does not say of which data set. Set data.dataset.")
        if self.captions is not None and self.captioner is not None:
            raise ValueError("captions come from a file or from captioner: set one of them")
        return self
