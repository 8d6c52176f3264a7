"""Your own training on a run's generated images: Ray Data reads and decodes them, Ray Train's workers share them out.

python jobs/own_training.py RUN [WORKERS]
"""

import io
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import ray
import torch
from PIL import Image
from ray import train
from ray.train.torch import TorchTrainer, prepare_model
from torch import nn

SIDE, EPOCHS = 64, 5


def decoded(row: dict) -> dict:
    image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").resize((SIDE, SIDE))
    return {"pixels": np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255, "label": row["label"]}


def train_own(settings: dict) -> None:
    """What each worker does; any torch training may stand here."""
    convolutions = [nn.Conv2d(3, 32, 3, 2), nn.ReLU(), nn.Conv2d(32, 64, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4)]
    model = prepare_model(nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1024, settings["n_classes"])))
    optimizer, images = torch.optim.AdamW(model.parameters(), 2e-3), train.get_dataset_shard("train")
    for _ in range(EPOCHS):
        losses = []
        for batch in images.iter_torch_batches(batch_size=32, local_shuffle_buffer_size=512):
            loss = nn.functional.cross_entropy(model(batch["pixels"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with tempfile.TemporaryDirectory() as folder:
            is_first = train.get_context().get_world_rank() == 0
            torch.save(model.state_dict(), Path(folder, "model.pt"))
            checkpoint = train.Checkpoint.from_directory(folder) if is_first else None
            train.report({"loss": float(np.mean(losses))}, checkpoint)


if __name__ == "__main__":
    run, workers = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
    run = run if "://" in run else os.path.abspath(run)  # Ray Train takes no other paths
    images = ray.data.read_parquet(f"{run}/dataset/data").select_columns(["image", "label"])
    result = TorchTrainer(
        train_own,
        train_loop_config={"n_classes": int(images.max("label")) + 1},
        scaling_config=train.ScalingConfig(num_workers=workers, use_gpu=ray.cluster_resources().get("GPU", 0) > 0),
        run_config=train.RunConfig(name="own-training", storage_path=run),
        datasets={"train": images.map(decoded)},
    ).fit()
    print(f"loss {result.metrics['loss']:.3f} after {EPOCHS} epochs; weights in {result.checkpoint.path}")
