"""Train the autoencoder from scratch on painted images."""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from datadream.models.tiny.networks import build_vae
from datadream.models.tiny.training import Sampler, StageRecord, Trainer

BATCH_SIZE = 32
# Per latent dimension: enough to keep latents bounded, too little to blur strokes.
KL_WEIGHT = 1e-4
CALIBRATION_IMAGES = 2048
VALIDATION_IMAGES = 512


def train_vae(
    sample: Sampler, sample_held_out: Sampler, *, steps: int, seed: int
) -> tuple[AutoencoderKL, StageRecord]:
    """An autoencoder whose scaling_factor makes latents have unit deviation."""
    # Of torch for initial weights and the latents' noise; images have a generator of their own.
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    vae = build_vae().train()
    record = StageRecord(stage="vae", seed=seed, steps=steps, batch_size=BATCH_SIZE)
    trainer = Trainer(vae, record, lr=2e-3, weight_decay=0.01)
    # In fp32: for group norm's backward bf16 and channels-last took 0.23 s a step, and this 0.15 (batch 64).
    for _ in range(steps):
        images = sample(BATCH_SIZE, rng).images
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        kl_per_dimension = posterior.kl().mean() / posterior.mean[0].numel()
        trainer.step(F.l1_loss(decoded, images) + 2 * F.mse_loss(decoded, images) + KL_WEIGHT * kl_per_dimension)
    vae.eval()
    # Pipelines multiply latents by the scaling factor: the noise schedule is made for unit deviation.
    with torch.inference_mode():
        latents = vae.encode(sample(CALIBRATION_IMAGES, rng).images).latent_dist.sample()
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    held_out = sample_held_out(VALIDATION_IMAGES, rng).images
    record.metrics = {"psnr": psnr(vae, held_out), "scaling_factor": vae.config.scaling_factor}
    return vae, record


@torch.inference_mode()
def psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """Mean reconstruction PSNR in dB of images [n, 3, 32, 32] in [-1, 1]."""
    decoded = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
    mse = (decoded - images).square().mean(dim=(1, 2, 3)) / 4
    return (-10 * mse.log10()).mean().item()
