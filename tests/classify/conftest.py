"""A CLIP small enough for tests, saved as an open_clip folder, and a toy run whose classes are colours."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from datadream.config import ExperimentConfig, parse_config
from datadream.data.datasets import open_source
from datadream.data.few_shot import FewShotSet, draw
from datadream.run_store import RunStore

COLORS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (210, 50, 40)}
SIZE = 16
EMBEDDING = 32


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`local-dir:` id of an untrained CLIP with two layers in each tower."""
    folder = tmp_path_factory.mktemp("clip")
    save_tiny_clip(folder)
    return f"local-dir:{folder}"


def save_tiny_clip(folder: Path) -> None:
    """Write config, weights and tokenizer; open_clip pools text at the largest id, so the end token comes last."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    special = dict(bos_token=tokens[-2], eos_token=tokens[-1], unk_token=tokens[-1], pad_token=tokens[-1])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=32, **special).save_pretrained(folder)
    config = {
        "embed_dim": EMBEDDING,
        "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4},
        "text_cfg": {
            "context_length": 32,
            "vocab_size": len(tokens),
            "hf_tokenizer_name": "local",
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    }
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy one-colour photos in train, val and test folders; 4, 6 and 10 of each class."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for part, n in (("train", 4), ("val", 6), ("test", 10)):
        for name in COLORS:
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(n):
                color_image(rng, name, (20, 24)).save(folder / f"{index}.png")
    return root


def color_image(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> Image.Image:
    """One colour with so much noise that single pixels do not tell it."""
    pixels = np.array(COLORS[name]) + rng.normal(0, 40, (*shape, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def few_shot(photo_folder: Path) -> FewShotSet:
    return draw(open_source(str(photo_folder)).dataset(), n_shots=2, seed=0, prompt="a photo of a {name}")


@pytest.fixture(scope="session")
def config(photo_folder: Path, clip_folder: str) -> ExperimentConfig:
    """Few steps of a fast learner; photos may be mirrored."""
    classify = {"model": clip_folder, "pretrained": None, "rank": 4, "alpha": 8, "projections": ("q", "k", "v", "out")}
    schedule = {"steps": 30, "batch_size": 12, "learning_rate": 1e-2, "warmup_steps": 2, "eval_every": 10}
    augment = {"color_jitter": 0.1, "grayscale": 0.0}
    return parse_config({"data": {"source": str(photo_folder)}, "classify": {**classify, **schedule, "augment": augment}})


@pytest.fixture(scope="session")
def ray_session():
    """Ray with more CPUs than the machine has: they are tickets, not cores."""
    ours = not ray.is_initialized()
    if ours:
        ray.init(num_cpus=4, log_to_driver=False, include_dashboard=False)
    yield
    if ours:
        ray.shutdown()


def publish(store: RunStore, n_per_class: int, shards: int = 2, form: str = "parquet") -> None:
    """Write a dataset of colour images and its marker, as generation would."""
    rng = np.random.default_rng(1)
    rows = [(f"{name}/{i:03d}", label, color_image(rng, name, (16, 16))) for i in range(n_per_class) for label, name in enumerate(COLORS)]
    names = []
    for shard in range(shards):
        names.append(f"data/train-{shard:05d}-of-{shards:05d}.{'parquet' if form == 'parquet' else 'tar'}")
        write = parquet_shard if form == "parquet" else webdataset_shard
        store.write_bytes(f"dataset/{names[-1]}", write(rows[shard::shards]))
    store.write_json("dataset/dataset.json", {"format": form, "shards": names, "n_images": len(rows)})


def parquet_shard(rows: list[tuple[str, int, Image.Image]]) -> bytes:
    table = pa.table(
        {
            "image": [{"bytes": encoded(image, "PNG"), "path": f"{key}.png"} for key, _, image in rows],
            "label": pa.array([label for _, label, _ in rows], pa.int64()),
            "prompt": ["a colour" for _ in rows],
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def webdataset_shard(rows: list[tuple[str, int, Image.Image]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key, label, image in rows:
            for suffix, data in (("webp", encoded(image, "WEBP")), ("cls", str(label).encode()), ("json", b"{}")):
                member = tarfile.TarInfo(f"{key.replace('/', '-')}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, lossless=True)
    return buffer.getvalue()
