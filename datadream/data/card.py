"""The dataset card: what the Hub and `datasets.load_dataset` read beside the shards."""

from __future__ import annotations

from typing import Any

import yaml

from datadream.config import ExperimentConfig, GenerateConfig, public_model, public_source
from datadream.data.few_shot import FewShotSet

_WHERE = {"parquet": "`provenance`", "webdataset": "The `.json` beside each image"}


def dataset_card(
    few_shot: FewShotSet,
    config: ExperimentConfig,
    n_images: int,
    n_bytes: int,
    selection: dict[str, Any] | None = None,
) -> str:
    """README.md with the Hub's YAML header; `selection` are the totals of the filters, where any chose the images."""
    names = {str(label): name for label, name in enumerate(few_shot.class_names)}
    features = [
        {"name": "image", "dtype": "image"},
        {"name": "label", "dtype": {"class_label": {"names": names}}},
        {"name": "provenance", "dtype": "string"},
    ]
    header = {
        "license": "other",
        "license_name": "licence-of-the-base-model",
        "annotations_creators": ["machine-generated"],
        "task_categories": ["image-classification"],
        "tags": ["synthetic", "datadream"],
        "size_categories": [_size_category(n_images)],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    }
    if config.generate.dataset_format == "parquet":
        header["dataset_info"] = {
            "features": features,
            "splits": [{"name": "train", "num_bytes": n_bytes, "num_examples": n_images}],
        }
    else:
        header["configs"][0]["data_files"][0]["path"] = "data/*.tar"
    settings = config.generate
    body = f"""
# {n_images:,} synthetic images of {len(few_shot.class_names)} classes

Drawn by DataDream from {few_shot.n_shots} real photos per class of `{public_source(config.data.source)}`.

| | |
|---|---|
| method | {config.method} |
| base model | `{public_model(config.diffusion.model)}`, whose licence covers these images |
| images per class | {settings.images_per_class} |
| scheduler | {settings.scheduler or "the base model's"} |
| denoising steps, guidance | {settings.steps}, {settings.guidance_scale} |
{_approximations(settings)}| prompt | {config.data.prompt} |
| seed | {config.seed} |
{_selection_rows(config, selection) if selection else ""}
{_WHERE[settings.dataset_format]} says how each image was made, as JSON: prompt, seed, adapters with their weights and
hashes, base model, scheduler, steps, guidance, and the real photo that it started from, if any.

```python
from datasets import load_dataset

images = load_dataset("OWNER/NAME", split="train")  # or the path of this folder
```
"""
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n{body}"


def _approximations(settings: GenerateConfig) -> str:
    """Rows of what is not as in the paper, if anything."""
    rows = []
    if settings.guidance_interval != (0, 1):
        rows.append(f"| guided noise levels | {settings.guidance_interval[0]} to {settings.guidance_interval[1]} |")
    if settings.cache_interval > 1:
        rows.append(f"| inner blocks of the UNet computed | every {settings.cache_interval} steps |")
    return "".join(f"{row}\n" for row in rows)


def _selection_rows(config: ExperimentConfig, selection: dict[str, Any]) -> str:
    filters, rejected = config.generate.select, selection["rejected"]
    left_out = []
    if filters.label_top_k is not None:
        left_out.append(f"{rejected['label']:,} whose class is not among the first {filters.label_top_k} of CLIP")
    if filters.max_shot_similarity is not None:
        left_out.append(f"{rejected['copy']:,} more similar to a real photo than {filters.max_shot_similarity}")
    if filters.coverage > 1:
        left_out.append(f"{rejected['redundant']:,} because others cover their class better")
    rows = f"| left out | of {selection['candidates']:,} images {'; '.join(left_out)} |\n"
    if selection["short"]:
        rows += f"| fewer images | {', '.join(f'{name}: {count}' for name, count in selection['short'].items())} |\n"
    return rows


def _size_category(n: int) -> str:
    bounds = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
    return next((name for bound, name in bounds if n < bound), "1M<n<10M")
