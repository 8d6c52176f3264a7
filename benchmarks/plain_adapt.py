"""The plain loop that the authors' training script amounts to, on diffusers and peft.

Every step reads, crops and encodes every image with the VAE and encodes one prompt per image, in fp32. As a script it
trains one adapter in one process and loads the model twice, to train and to save.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor
from torchvision import transforms

UNET_TARGETS = ["to_k", "to_out.0", "to_q", "to_v"]
TEXT_TARGETS = ["k_proj", "out_proj", "q_proj", "v_proj"]
BATCH = 8
RANK = 16


class PlainTrainer:
    """One adapter's training, step by step."""

    def __init__(
        self, pipeline: StableDiffusionPipeline, photos: Sequence[Path], prompt: str, steps: int, dtype: torch.dtype
    ):
        """Takes over a pipeline; with another `dtype` than fp32 its frozen weights are cast to it, and steps are
        autocast, as the script's --mixed_precision does."""
        self.pipeline = pipeline
        self.photos, self.prompt, self.device, self.dtype = photos, prompt, pipeline.device.type, dtype
        self.noise_schedule = DDPMScheduler.from_config(self.pipeline.scheduler.config)
        size = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor
        self.transform = transforms.Compose(
            [
                transforms.Resize(size),
                transforms.RandomCrop(size),
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
            ]
        )
        self.pipeline.vae.requires_grad_(False).to(dtype)
        for module, targets in (
            (self.pipeline.unet, UNET_TARGETS),
            (self.pipeline.text_encoder, TEXT_TARGETS),
        ):
            module.requires_grad_(False).to(dtype)
            module.add_adapter(
                LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=targets)
            )
        self.start(steps)

    def start(self, steps: int) -> None:
        """A new adapter on the model that is there."""
        modules = (self.pipeline.unet, self.pipeline.text_encoder)
        named = [pair for module in modules for pair in module.named_parameters() if pair[1].requires_grad]
        for name, parameter in named:
            parameter.data = parameter.data.float()
            if "lora_A" in name:
                torch.nn.init.normal_(parameter, std=1 / RANK)
            else:
                torch.nn.init.zeros_(parameter)
        self.parameters = [parameter for _, parameter in named]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=1e-2)
        self.schedule = get_scheduler("cosine", self.optimizer, num_warmup_steps=2, num_training_steps=steps)

    def read(self) -> Tensor:
        """The next batch's crops [n, 3, size, size]."""
        images = [Image.open(self.photos[i % len(self.photos)]).convert("RGB") for i in range(BATCH)]
        return torch.stack([self.transform(image) for image in images])

    def step(self, crops: Tensor | None = None) -> float:
        """One optimiser step, on `crops` that were read before or new ones; returns the loss, as a progress bar shows
        it."""
        pixels = (self.read() if crops is None else crops).to(self.device, self.dtype)
        latents = self.pipeline.vae.encode(pixels).latent_dist.sample() * self.pipeline.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        times = torch.randint(0, 1000, (BATCH,), device=self.device)
        noisy = self.noise_schedule.add_noise(latents, noise, times)
        tokens = self.pipeline.tokenizer(
            [self.prompt] * BATCH, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids.to(self.device)
        with torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype != torch.float32):
            predicted = self.pipeline.unet(noisy, times, self.pipeline.text_encoder(tokens)[0]).sample
        loss = F.mse_loss(predicted.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return loss.item()

    def save(self, folder: str) -> None:
        layers = {
            f"{name}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(module))
            for name, module in (("unet", self.pipeline.unet), ("text_encoder", self.pipeline.text_encoder))
        }
        StableDiffusionPipeline.save_lora_weights(folder, **layers)


def train_adapter(model: str, folder: Path, output: str, steps: int, device: str) -> None:
    """One adapter, as the authors' script makes one when it is called for a class."""
    photos = sorted(folder.iterdir())
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None).to(device)
    trainer = PlainTrainer(pipeline, photos, "a photo of a digit", steps, torch.float32)
    for _ in range(steps):
        trainer.step()
    trainer.save(output)
    # The script loads the whole pipeline again and puts the new weights in.
    StableDiffusionPipeline.from_pretrained(model, safety_checker=None).load_lora_weights(output)


def main() -> None:
    """Train one adapter."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model")
    parser.add_argument("photos", help="folder of one class")
    parser.add_argument("output")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    train_adapter(arguments.model, Path(arguments.photos), arguments.output, arguments.steps, arguments.device)


if __name__ == "__main__":
    main()
