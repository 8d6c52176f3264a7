"""Train the denoiser and its text encoder together, from scratch, on cached latents of rendered glyphs."""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTokenizer

from datadream.models.tiny.glyphs import sample_glyphs
from datadream.models.tiny.networks import build_scheduler, build_text_encoder, build_unet
from datadream.models.tiny.train_clip import tokenize
from datadream.models.tiny.training import StageRecord, Trainer

BATCH_SIZE = 48
LETTER_SHARE = 0.2
# Small scans and thumbnails are within what the generator can make.
BLUR_SHARE = 0.3
CACHED_IMAGES = 32_768
CAPTION_DROP = 0.1
EMA_DECAY = 0.999
# Hang et al. 2023 (arXiv 2303.09556): caps the weight of nearly clean latents, where no class is decided.
MIN_SNR_GAMMA = 5.0


def train_unet(
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    masks: Tensor,
    *,
    steps: int,
    seed: int,
    cached_images: int = CACHED_IMAGES,
) -> tuple[nn.ModuleDict, StageRecord]:
    """The averaged {"unet", "text_encoder"} after training; masks are [faces, 36, 64, 64] uint8."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    # Rendered and encoded once: encoding every step would cost as much as the denoiser.
    cached, cached_ids = [], []
    with torch.no_grad():
        for _ in range(cached_images // 256):
            batch = sample_glyphs(masks, 256, rng, letter_share=LETTER_SHARE, blur_share=BLUR_SHARE)
            # A sample and not the mean, which is what the pipeline's own encoder gives the photos in training.
            cached.append(vae.encode(batch.images).latent_dist.sample(rng) * vae.config.scaling_factor)
            cached_ids.append(tokenize(tokenizer, batch.captions))
    latents, caption_ids, empty_ids = torch.cat(cached), torch.cat(cached_ids), tokenize(tokenizer, [""])[0]
    modules = nn.ModuleDict({"unet": build_unet(), "text_encoder": build_text_encoder(tokenizer)}).train()
    averaged = AveragedModel(modules, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    record = StageRecord(stage="unet", seed=seed, steps=steps, batch_size=BATCH_SIZE, faces=len(masks))
    trainer = Trainer(modules, record, lr=1e-3, weight_decay=0.01)
    scheduler = build_scheduler()
    for _ in range(steps):
        rows = torch.randint(len(latents), (BATCH_SIZE,), generator=rng)
        # Guidance contrasts a prompt with the empty one, so that is learnt too.
        is_dropped = torch.rand(BATCH_SIZE, 1, generator=rng) < CAPTION_DROP
        ids = torch.where(is_dropped, empty_ids, caption_ids[rows])
        trainer.step(_loss(modules, scheduler, latents[rows], ids, rng))
        averaged.update_parameters(modules)
    return averaged.module.eval(), record


def _loss(
    modules: nn.ModuleDict, scheduler: DDIMScheduler, latents: Tensor, caption_ids: Tensor, rng: torch.Generator
) -> Tensor:
    noise = torch.randn(latents.shape, generator=rng)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), generator=rng)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    distinct, caption_of = caption_ids.unique(dim=0, return_inverse=True)
    # The CPU's fused attention has a slow bfloat16 backward; with plain attention bfloat16 cuts a step by a third.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        hidden_states = modules["text_encoder"](distinct).last_hidden_state[caption_of]
        predicted = modules["unet"](noisy, timesteps, hidden_states).sample
    per_image = F.mse_loss(predicted.float(), noise, reduction="none").mean(dim=(1, 2, 3))
    snr = compute_snr(scheduler, timesteps)
    return (per_image * snr.clamp(max=MIN_SNR_GAMMA) / snr).mean()
