"""Models in the shapes that users load go through every stage, and what comes out opens in the plain libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import open_clip
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from datadream import recipes
from datadream.config import GenerateConfig
from datadream.generate.sampler import Sampler
from datadream.methods import ImageRequest
from datadream.models.diffusion.pipeline import load_pipeline
from datadream.run.layout import ADAPTER_WEIGHTS
from tests.real_models import link_predicting, save_clip, save_stable_diffusion

PROMPT = "a photo of a cat"
MOST_BYTES = 8 * 2**30
SMALL = [
    "diffusion.resolution=64",
    "data.n_shots=1",
    "adapt.steps_per_class=1",
    "adapt.warmup_steps=0",
    "adapt.precision=bf16",
    "generate.images_per_class=1",
    "generate.steps=1",
    "generate.precision=bf16",
    "classify.steps=1",
    "classify.batch_size=2",
    "classify.folds=0",
    # One shot of each class leaves nothing to choose by.
    "classify.search.learning_rates=[]",
    "classify.search.weight_decays=[]",
    "classify.search.mixes=[]",
    "classify.precision=bf16",
    "cluster.workers=1",
    "cluster.device=cpu",
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two classes of camera-sized photos."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, name in ((part, name) for part in ("train", "test") for name in ("cat", "dog")):
        (root / part / name).mkdir(parents=True)
        pixels = rng.integers(0, 256, (375, 500, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / part / name / "0.jpg")
    return root


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory) -> Path:
    return save_stable_diffusion(tmp_path_factory.mktemp("model") / "sd")


@pytest.fixture(scope="module")
def vit_b_16(tmp_path_factory) -> Path:
    return save_clip("ViT-B-16-quickgelu", tmp_path_factory.mktemp("model") / "clip.safetensors")


def datadream(*arguments: str) -> tuple[str, int]:
    """Output of a command and the most memory that its processes had of their own, in bytes."""
    command = [sys.executable, "-m", "datadream.cli", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    most, ended = 0, threading.Event()
    process = psutil.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def watch() -> None:
        nonlocal most
        while not ended.wait(1):
            now = 0
            for each in [process, *process.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    now += each.memory_full_info().uss
            most = max(most, now)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        said = process.communicate()[0]
    finally:
        ended.set()
        watcher.join()
    assert process.returncode == 0, said
    return said, most


def knobs(photos: Path, clip: Path, architecture: str, more: Sequence[str]) -> list[str]:
    return [f"data.source={photos}", f"classify.model={architecture}", f"classify.pretrained={clip}", *SMALL, *more]


def our_image(model: Path, adapter: Path) -> np.ndarray:
    pipeline = load_pipeline(str(model), None, torch.device("cpu"), torch.float32)
    sampler = Sampler(pipeline, GenerateConfig(steps=2), 64)
    request = ImageRequest(0, 0, PROMPT, 7, (("an adapter", 1.0),))
    return sampler.generate([request], lambda _: adapter.read_bytes(), Image.open)[0]


def plain_image(model: Path, adapter: Path) -> np.ndarray:
    pipeline = StableDiffusionPipeline.from_pretrained(model, variant="fp16", dtype=torch.float32, safety_checker=None)
    pipeline.load_lora_weights(adapter.parent)
    layers = [
        sum(name.endswith("lora_A.default_0.weight") for name in part.state_dict())
        for part in (pipeline.unet, pipeline.text_encoder)
    ]
    assert layers == [128, 92]
    rng, sizes = torch.Generator().manual_seed(7), {"height": 64, "width": 64}
    return np.asarray(pipeline(PROMPT, num_inference_steps=2, guidance_scale=2.0, generator=rng, **sizes).images[0])


@pytest.mark.parametrize(
    ("prediction_type", "method"), [("epsilon", "datadream-cls"), ("v_prediction", "datadream-dset")]
)
def test_stable_diffusion_and_vit_b_16_through_every_stage(
    photos, stable_diffusion, vit_b_16, tmp_path, prediction_type, method
):
    model, run = link_predicting(prediction_type, stable_diffusion, tmp_path / "sd"), str(tmp_path / "run")
    more = [f"diffusion.model={model}", f"method={method}", "classify.settings=[zero-shot, real+synthetic]"]
    made = ["--recipe", "paper", *knobs(photos, vit_b_16, "ViT-B-16-quickgelu", more)]
    _, most = datadream("run", "--run", run, *made)
    assert most < MOST_BYTES
    adapter = next(Path(run).glob(f"adapters/*/{ADAPTER_WEIGHTS}"))
    with ThreadPoolExecutor(1) as threads:  # two commands that mostly import, beside the images
        predicted = threads.submit(datadream, "predict", run, str(photos / "test" / "cat" / "0.jpg"))
        exported = threads.submit(datadream, "export", "--run", run, "--to", str(tmp_path / "exported"))
        ours, plain = our_image(model, adapter), plain_image(model, adapter)
    assert "cat" in predicted.result()[0]
    exported.result()
    loaded = open_clip.create_model(f"local-dir:{tmp_path / 'exported'}")
    assert sum(parameter.numel() for parameter in loaded.parameters()) == 149_620_737
    assert ours.std() > 10
    assert np.abs(ours.astype(int) - plain.astype(int)).max() <= 2


def test_loft_disef_and_protoaug(photos, stable_diffusion, vit_b_16, tmp_path):
    """As a table of two runs: the models are loaded once for both. One caption is longer than the text encoder."""
    captions, run = {"train/cat/0.jpg": "a cat on a mat" * 30, "train/dog/0.jpg": "a dog in a fog"}, tmp_path / "run"
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    loft = [f"{knob}={str(value).lower()}" for knob, value in recipes.LOFT.items()]
    more = [
        f"diffusion.model={stable_diffusion}",
        "grid.methods=[loft, disef]",
        "generate.strength=1",
        f"data.captions={tmp_path / 'captions.json'}",
        "classify.settings=[real+synthetic]",
        "classify.protoaug.discrepancy=4",
    ]
    made = ["--recipe", "paper", *loft, *knobs(photos, vit_b_16, "ViT-B-16-quickgelu", more)]
    said, most = datadream("run", "--run", str(run), *made)
    assert most < MOST_BYTES
    assert "1 of 2 captions and descriptions are longer than the 77 tokens" in said
    adapters = sorted(run.glob(f"cells/*/adapters/*/{ADAPTER_WEIGHTS}"))
    assert [path.parent.name for path in adapters] == ["class-00000-shot-00", "class-00001-shot-00"]
    weights = load_file(adapters[0])
    assert {next(iter(weight.shape)) for name, weight in weights.items() if name.endswith(".down.weight")} == {2}
    assert sum(name.endswith(".down.weight") for name in weights) == len(weights) // 2 == 128
    prompts = {
        json.loads(text)["prompt"] for path in run.glob("cells/*disef*/dataset/**/*.parquet") for text in _told(path)
    }
    assert prompts == set(captions.values())


def _told(shard: Path) -> list[str]:
    return pq.read_table(shard)["provenance"].to_pylist()


def test_other_classifiers_of_the_paper(photos, tmp_path):
    """Both runs at once: most of their time a process imports."""

    def run(architecture: str) -> int:
        folder = tmp_path / architecture
        folder.mkdir()
        clip = save_clip(architecture, folder / "clip.safetensors")
        own = knobs(photos, clip, architecture, ["method=none", "classify.settings=[real]"])
        _, most = datadream("run", "--run", str(folder / "run"), "--recipe", "paper", *own)
        assert (folder / "run" / "metrics.json").is_file()
        return most

    with ThreadPoolExecutor() as threads:
        assert max(threads.map(run, ["ViT-L-14-quickgelu", "RN50-quickgelu"])) < MOST_BYTES
