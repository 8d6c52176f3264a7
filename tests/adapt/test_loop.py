"""Our training step is a plain diffusers and peft loop's."""

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image

from datadream.adapt.loop import AdapterTrainer
from datadream.adapt.steps import n_steps
from datadream.config import AdaptConfig
from datadream.methods import AdapterSpec, TrainingPhoto
from datadream.models import lora
from datadream.models.diffusion import load_pipeline
from tests.tiny_models import save_pipeline

CONFIG = AdaptConfig(steps_per_class=20, learning_rate=1e-3, warmup_steps=4, rank=4, batch_size=3)
PROMPTS = ("a photo of a cat", "a photo of a dog")


def spec(adapter_id: str = "class-00000", seed: int = 3, n_photos: int = 4) -> AdapterSpec:
    photos = tuple(TrainingPhoto(f"{i}.png", PROMPTS[i % 2]) for i in range(n_photos))
    return AdapterSpec(adapter_id, photos, 1, seed)


def images(n: int = 4) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(n)]


def trainer(folder, config: AdaptConfig = CONFIG) -> AdapterTrainer:
    return AdapterTrainer(load_pipeline(str(folder), None, torch.device("cpu"), torch.float32), config, 32)


def plain_loop(folder, seed: int) -> dict[str, torch.Tensor]:
    """The same 20 steps as a script on diffusers and peft would take them: every crop and prompt encoded every
    step."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    unet, text_encoder, vae = pipeline.unet, pipeline.text_encoder, pipeline.vae
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    for module in (unet, text_encoder, vae):
        module.requires_grad_(False)
    lora.attach(pipeline, CONFIG.rank, text_encoder=True)
    lora.reset(pipeline, seed)
    parameters = [p for module in (unet, text_encoder) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=CONFIG.learning_rate, weight_decay=CONFIG.weight_decay)
    factor = lambda step: (step / 4) if step < 4 else 0.5 * (1 + np.cos(np.pi * (step - 4) / 16))  # noqa: E731
    learning_rate = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    generator = torch.Generator().manual_seed(seed)
    pixels = (
        torch.stack([torch.from_numpy(np.asarray(image)).permute(2, 0, 1) for image in images()]).float() / 127.5 - 1
    )
    order: list[int] = []
    for _ in range(20):
        while len(order) < 3:
            order += torch.randperm(4, generator=generator).tolist()
        batch, order = order[:3], order[3:]
        for _ in range(2 * len(batch)):  # the crop offsets, of which a square photo has one
            torch.randint(1, (), generator=generator)
        distribution = vae.encode(pixels[batch]).latent_dist
        latents = distribution.mean + distribution.std * torch.randn(distribution.mean.shape, generator=generator)
        latents = latents * vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator)
        times = torch.randint(1000, (3,), generator=generator)
        tokens = pipeline.tokenizer(
            [PROMPTS[i % 2] for i in batch], padding="max_length", return_tensors="pt"
        ).input_ids
        predicted = unet(schedule.add_noise(latents, noise, times), times, text_encoder(tokens)[0]).sample
        epsilon = schedule.config.prediction_type == "epsilon"
        target = noise if epsilon else schedule.get_velocity(latents, noise, times)
        F.mse_loss(predicted, target).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        learning_rate.step()
        optimizer.zero_grad()
    return safetensors.torch.load(lora.to_bytes(pipeline, text_encoder=True))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_twenty_steps_equal_a_plain_loop(tmp_path, prediction_type):
    folder = save_pipeline(tmp_path / "pipeline", prediction_type)
    ours = safetensors.torch.load(trainer(folder).train(spec(), images()).weights)
    plain = plain_loop(folder, seed=3)
    assert ours.keys() == plain.keys()
    for key in plain:
        error = (ours[key] - plain[key]).norm() / plain[key].norm()
        assert error < 1e-4, key


def test_an_adapter_does_not_depend_on_those_trained_before_it(pipeline_folder):
    alone = trainer(pipeline_folder).train(spec(), images())
    warm = trainer(pipeline_folder)
    warm.train(spec("class-00001", seed=9), images())
    assert warm.train(spec(), images()).weights == alone.weights
    assert alone.vae_encodes == 4


def test_without_text_encoder_only_the_unet_is_adapted(pipeline_folder):
    config = CONFIG.model_copy(update={"text_encoder": False, "steps_per_class": 2})
    weights = trainer(pipeline_folder, config).train(spec(), images()).weights
    assert {key.split(".")[0] for key in safetensors.torch.load(weights)} == {"unet"}


def test_progress_and_losses_cover_every_step(pipeline_folder):
    steps = []
    trained = trainer(pipeline_folder).train(spec(), images(), steps.append)
    assert steps == list(range(1, 21))
    assert [step for step, _ in trained.losses] == [10, 20]


def test_nan_loss_names_adapter_and_step(pipeline_folder):
    broken = trainer(pipeline_folder, CONFIG.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0}))
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step \d+"):
        broken.train(spec(), images())


def test_class_adapters_share_the_dataset_adapters_steps():
    config = AdaptConfig()
    one = AdapterSpec("a", spec(n_photos=16).photos, 1, 0)
    assert n_steps(one, config) == 400
    whole = AdapterSpec("d", one.photos * 10, 10, 0)
    assert n_steps(whole, config) == 10 * n_steps(one, config)
    assert n_steps(whole, AdaptConfig(steps_per_class=150)) == 1500
