"""Train the denoiser from scratch, and its text encoder beside it, on cached latents of painted images."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModel, CLIPTokenizer

from datadream.models.tiny.networks import build_scheduler, build_unet
from datadream.models.tiny.train_clip import Tokens
from datadream.models.tiny.training import Sampler, StageRecord, Trainer

ENCODED_AT_ONCE = 256
CAPTION_DROP = 0.1
CHECKPOINT_EVERY = 500
EMA_DECAY = 0.999
# Hang et al. 2023 (arXiv 2303.09556): caps the weight of nearly clean latents, where no class is decided.
MIN_SNR_GAMMA = 5.0


def train_unet(
    vae: AutoencoderKL,
    make_text_encoder: Callable[[], CLIPTextModel],
    tokenizer: CLIPTokenizer,
    sample: Sampler,
    *,
    steps: int,
    batch_size: int,
    cached_images: int,
    renew_every: int | None,
    seed: int,
    checkpoint: Path | None = None,
) -> tuple[nn.ModuleDict, StageRecord]:
    """The averaged {"unet", "text_encoder"} after training, from the checkpoint's state where there is one.

    Images are painted and encoded once: encoding every step would cost as much as the denoiser. With `renew_every`,
    256 new ones replace the oldest each so many steps. A resumed training paints other images than an unbroken one.
    Raises ValueError where the checkpoint is of another seed or number of steps.
    """
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    tokens = Tokens(tokenizer)

    @torch.no_grad()
    def encoded() -> tuple[Tensor, Tensor]:
        batch = sample(ENCODED_AT_ONCE, rng)
        # A sample and not the mean, which is what the pipeline's own encoder gives the photos in training.
        return vae.encode(batch.images).latent_dist.sample(rng) * vae.config.scaling_factor, tokens(batch.captions)

    latents, caption_ids = map(
        torch.cat, zip(*(encoded() for _ in range(cached_images // ENCODED_AT_ONCE)), strict=True)
    )
    empty_ids = tokens([""])[0]
    modules = nn.ModuleDict({"unet": build_unet(), "text_encoder": make_text_encoder()}).train()
    averaged = AveragedModel(modules, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    record = StageRecord(stage="unet", seed=seed, steps=steps, batch_size=batch_size)
    trainer = Trainer(modules, record, lr=1e-3, weight_decay=0.01)
    trainer.resume(checkpoint, averaged)
    scheduler = build_scheduler()
    for step in range(trainer.done, steps):
        if renew_every and step % renew_every == renew_every - 1:
            oldest = step // renew_every * ENCODED_AT_ONCE % len(latents)
            place = slice(oldest, oldest + ENCODED_AT_ONCE)
            latents[place], caption_ids[place] = encoded()
        rows = torch.randint(len(latents), (batch_size,), generator=rng)
        # Guidance contrasts a prompt with the empty one, so that is learnt too.
        is_dropped = torch.rand(batch_size, 1, generator=rng) < CAPTION_DROP
        ids = torch.where(is_dropped, empty_ids, caption_ids[rows])
        trainer.step(_loss(modules, scheduler, latents[rows], ids, rng))
        averaged.update_parameters(modules)
        if checkpoint and trainer.done % CHECKPOINT_EVERY == 0:
            trainer.save(checkpoint, averaged)
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
