"""Our training step is a plain diffusers and peft loop's."""

import re

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import get_peft_model_state_dict
from PIL import Image

from datadream.adapt.lora_trainer import AdapterTrainer, TrainedAdapter
from datadream.config import AdaptConfig
from datadream.methods import AdapterSpec, TrainingPhoto
from datadream.methods.n_steps import crops_per_step, n_steps, n_warmup_steps
from datadream.models.diffusion.lora import StackedLora
from datadream.models.diffusion.pipeline import load_pipeline
from datadream.run.layout import ADAPTER_WEIGHTS
from tests.tiny_models import save_pipeline

CONFIG = AdaptConfig(steps_per_class=20, learning_rate=1e-3, warmup_steps=4, rank=4, batch_size=3)
PROMPTS = ("a photo of a cat", "a photo of a dog")


def spec(adapter_id: str = "class-00000", seed: int = 3, n_photos: int = 4) -> AdapterSpec:
    photos = tuple(TrainingPhoto(f"{i}.png", PROMPTS[i % 2]) for i in range(n_photos))
    return AdapterSpec(adapter_id, photos, 1, seed)


def images(n: int = 4) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(n)]


CPU = torch.device("cpu")


def trainer(
    folder, config: AdaptConfig = CONFIG, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> AdapterTrainer:
    return AdapterTrainer(load_pipeline(str(folder), None, device, dtype), config, 32)


def train_one(ours: AdapterTrainer) -> TrainedAdapter:
    (trained,) = ours.train([spec()], [images()])
    return trained


def plain_loop(
    folder, seed: int, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights and losses of the same 20 steps as a script on diffusers and peft would take them: every crop and
    prompt encoded every step."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=dtype).to(device)
    unet, text_encoder, vae = pipeline.unet, pipeline.text_encoder, pipeline.vae
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    for module in (unet, text_encoder, vae):
        module.requires_grad_(False)
    lora = StackedLora(load_pipeline(str(folder), None, torch.device("cpu"), torch.float32), 1, CONFIG.rank, True)
    lora.reset(0, seed)  # both loops must start from the same A
    (folder / ADAPTER_WEIGHTS).write_bytes(lora.to_bytes(0))
    pipeline.load_lora_weights(folder, adapter_name="default")
    for module in (unet, text_encoder):
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
            parameter.requires_grad_("lora_" in name)
    parameters = [p for module in (unet, text_encoder) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=CONFIG.learning_rate, weight_decay=CONFIG.weight_decay)
    factor = lambda step: (step / 4) if step < 4 else 0.5 * (1 + np.cos(np.pi * (step - 4) / 16))  # noqa: E731
    learning_rate = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    generator = torch.Generator().manual_seed(seed)
    pixels = (
        torch.stack([torch.from_numpy(np.asarray(image)).permute(2, 0, 1) for image in images()]).float() / 127.5 - 1
    )
    order: list[int] = []
    losses = []
    for _ in range(20):
        while len(order) < 3:
            order += torch.randperm(4, generator=generator).tolist()
        batch, order = order[:3], order[3:]
        for _ in range(2 * len(batch)):  # the crop offsets, of which a square photo has one
            torch.randint(1, (), generator=generator)
        distribution = vae.encode(pixels[batch].to(device, dtype)).latent_dist
        latent_noise = torch.randn(distribution.mean.shape, generator=generator).to(device)
        latents = distribution.mean.float() + distribution.std.float() * latent_noise
        latents = latents * vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator).to(device)
        times = torch.randint(1000, (3,), generator=generator).to(device)
        tokens = pipeline.tokenizer(
            [PROMPTS[i % 2] for i in batch], padding="max_length", return_tensors="pt"
        ).input_ids.to(device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            noisy = schedule.add_noise(latents, noise, times).to(dtype)
            predicted = unet(noisy, times, text_encoder(tokens)[0]).sample
        epsilon = schedule.config.prediction_type == "epsilon"
        target = noise if epsilon else schedule.get_velocity(latents, noise, times)
        loss = F.mse_loss(predicted.float(), target)
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        learning_rate.step()
        optimizer.zero_grad()
    StableDiffusionPipeline.save_lora_weights(
        folder / "trained",
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(unet)),
        text_encoder_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(text_encoder)),
    )
    return safetensors.torch.load_file(folder / "trained" / ADAPTER_WEIGHTS), losses


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_twenty_steps_equal_a_plain_loop(tmp_path, prediction_type):
    folder = save_pipeline(tmp_path / "pipeline", prediction_type)
    ours = safetensors.torch.load(train_one(trainer(folder)).weights)
    ours = {key.replace("text_model.", ""): value for key, value in ours.items()}
    plain, _ = plain_loop(folder, seed=3)
    assert ours.keys() == plain.keys()
    for key in plain:
        error = (ours[key] - plain[key]).norm() / plain[key].norm()
        assert error < 1e-4, key


def test_an_adapter_does_not_depend_on_those_trained_before_it(pipeline_folder):
    alone = train_one(trainer(pipeline_folder))
    warm = trainer(pipeline_folder)
    warm.train([spec("class-00001", seed=9), spec("class-00002", seed=8)], [images()] * 2)
    assert train_one(warm).weights == alone.weights
    assert alone.vae_encodes == 4


def test_adapters_trained_side_by_side_are_those_trained_alone(pipeline_folder):
    """With other seeds, other numbers of photos and prompts: only the number of steps must agree."""
    ours = trainer(pipeline_folder)
    specs = [spec("a", 3, 4), spec("b", 9, 1), spec("c", 7, 2)]
    photos = [images(len(one.photos)) for one in specs]
    together = ours.train(specs, photos)
    for one, own, trained in zip(specs, photos, together, strict=True):
        (alone,) = ours.train([one], [own])
        assert trained.losses == pytest.approx(alone.losses, rel=1e-5)
        expected, found = safetensors.torch.load(alone.weights), safetensors.torch.load(trained.weights)
        for key in expected:
            assert (found[key] - expected[key]).norm() / expected[key].norm() < 1e-5, key


def test_a_step_encodes_a_prompt_once_and_a_crop_never_again(pipeline_folder):
    ours = trainer(pipeline_folder)
    encoded = []
    ours._pipeline.text_encoder.register_forward_pre_hook(lambda module, inputs: encoded.append(len(inputs[0])))
    one_prompt = [AdapterSpec(str(seed), spec().photos[:1], 1, seed) for seed in range(3)]
    trained = ours.train(one_prompt, [images(1)] * 3)
    assert encoded == [3] * 20
    assert [one.vae_encodes for one in trained] == [1, 1, 1]


def test_an_adapter_that_breaks_leaves_those_beside_it_alone(pipeline_folder):
    ours = trainer(pipeline_folder)
    (expected,) = ours.train([spec("b", 9)], [images()])
    start = ours._start

    def start_broken(*asked, **named):
        training = start(*asked, **named)
        ours._lora.weights.data[0] = float("nan")
        return training

    ours._start = start_broken
    broken, found = ours.train([spec("a"), spec("b", 9)], [images()] * 2)
    assert isinstance(broken, FloatingPointError)
    assert "the loss is nan at step 1" in str(broken)
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)


def test_without_text_encoder_only_the_unet_is_adapted(pipeline_folder):
    config = CONFIG.model_copy(update={"text_encoder": False, "steps_per_class": 2})
    weights = train_one(trainer(pipeline_folder, config)).weights
    assert {key.split(".")[0] for key in safetensors.torch.load(weights)} == {"unet"}


def test_progress_and_losses_cover_every_step(pipeline_folder):
    steps = []
    (trained,) = trainer(pipeline_folder).train([spec()], [images()], lambda step, losses: steps.append(step))
    assert steps == list(range(1, 21))
    assert len(trained.losses) == 20


def test_nan_loss_names_adapter_and_step(pipeline_folder):
    broken = trainer(pipeline_folder, CONFIG.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0}))
    (error,) = broken.train([spec()], [images()])
    assert re.match(r"the loss is (nan|inf) at step \d+", str(error))


@pytest.mark.parametrize(
    ("shots", "steps", "crops"), [(1, 200, 1), (2, 200, 2), (4, 200, 4), (8, 200, 8), (12, 400, 8), (16, 400, 8)]
)
def test_few_photos_take_the_authors_steps_in_batches_of_what_there_is(shots, steps, crops):
    config, one = AdaptConfig(), spec(n_photos=shots)
    assert (n_steps(one, config), crops_per_step(one, config)) == (steps, crops)
    assert n_warmup_steps(steps, config) == 100


def test_the_authors_steps_count_all_photos_of_an_adapter_of_all_classes():
    config, whole = AdaptConfig(epochs=100), AdapterSpec("d", spec(n_photos=16).photos * 1000, 1000, 0)
    assert n_steps(whole, config) == 200_000  # ImageNet: half of what 1,000 adapters of 400 steps take
    assert n_steps(AdapterSpec("d", spec(n_photos=1).photos * 37, 37, 0), AdaptConfig()) == 200 * 5
    assert crops_per_step(AdapterSpec("d", spec(n_photos=1).photos * 37, 37, 0), AdaptConfig()) == 8


def test_earlier_versions_law_gave_one_photo_an_eighth():
    earlier = AdaptConfig(step_law="crops")
    assert [n_steps(spec(n_photos=shots), earlier) for shots in (1, 2, 4, 8, 12, 16)] == [25, 50, 100, 200, 300, 400]
    for full in (earlier, AdaptConfig(steps_per_class=150)):
        assert crops_per_step(spec(n_photos=1), full) == 8


def test_a_step_of_few_photos_has_each_of_them_once(pipeline_folder):
    config = CONFIG.model_copy(update={"steps_per_class": None, "epochs": 2, "batch_size": 8})
    training = trainer(pipeline_folder, config)._start([spec()], [images()], steps=2)
    (stream,) = training.streams
    for _ in range(3):
        batch = stream.sample()
        assert len(batch.clean) == 4
        assert sorted(batch.prompts) == sorted(PROMPTS * 2)
        assert batch.weights.tolist() == [0.25] * 4


def test_adapters_of_other_numbers_of_photos_become_what_they_become_alone(pipeline_folder):
    """Of one and of four photos, both have an epoch of one step, and a batch of their own size."""
    config = CONFIG.model_copy(update={"steps_per_class": None, "epochs": 5, "batch_size": 8})
    ours, counts = trainer(pipeline_folder, config), (1, 4, 1, 3)
    specs = [spec(f"a{number}", number, n_photos) for number, n_photos in enumerate(counts)]
    together = ours.train(specs, [images(n) for n in counts])
    for one, found in zip(specs, together, strict=True):
        (alone,) = ours.train([one], [images(len(one.photos))])
        assert found.losses == pytest.approx(alone.losses, rel=1e-4)
        assert len(found.losses) == 5


def test_class_adapters_share_the_dataset_adapters_steps():
    config = AdaptConfig()
    one = AdapterSpec("a", spec(n_photos=16).photos, 1, 0)
    assert n_steps(one, config) == 400
    whole = AdapterSpec("d", one.photos * 10, 10, 0)
    assert n_steps(whole, config) == 10 * n_steps(one, config)
    assert n_steps(whole, AdaptConfig(steps_per_class=150)) == 1500


def test_the_fastest_group_is_measured_and_bounded(pipeline_folder):
    ours = trainer(pipeline_folder)
    assert ours.fastest_group(most=1) == 1
    assert ours.fastest_group(most=5) in (1, 2, 4)
    expected = train_one(trainer(pipeline_folder))
    assert train_one(ours).weights == expected.weights


@pytest.mark.parametrize("schedule", ["cosine", "constant", "linear"])
def test_every_schedule_begins_with_the_warm_up(pipeline_folder, schedule):
    """Two steps, of which one warms up, at a rate of zero: the base generator's loss is that of the first two."""
    config = CONFIG.model_copy(update={"schedule": schedule, "steps_per_class": 2, "learning_rate": 1e30})
    losses = train_one(trainer(pipeline_folder, config)).losses
    assert np.isfinite(losses).all()


def test_out_of_memory_halves_the_group(pipeline_folder, caplog):
    ours = trainer(pipeline_folder)
    train, sizes = ours._train, []

    def with_little_memory(specs, *others):
        sizes.append(len(specs))
        if len(specs) > 2:
            raise torch.OutOfMemoryError
        return train(specs, *others)

    ours._train = with_little_memory
    specs = [spec(str(seed), seed) for seed in range(5)]
    trained = ours.train(specs, [images()] * 5)
    assert sizes == [5, 3, 2, 1, 2]
    assert "out of memory with 5 adapters side by side: going on with 3" in caplog.text
    assert len({one.weights for one in trained}) == 5


def test_memory_may_end_while_adapters_are_put_on(pipeline_folder, monkeypatch):
    """Two were on the model before, three do not fit any more, and two do."""
    ours = trainer(pipeline_folder)
    specs = [spec(str(seed), seed) for seed in range(3)]
    expected = [one.weights for one in trainer(pipeline_folder).train(specs[:2], [images()] * 2)]
    ours.train(specs[:2], [images()] * 2)
    cat = torch.cat

    def with_little_memory(tensors, dim=0):
        if dim == 1 and len(tensors) > 4 and len(tensors[0]) > 2:  # all of three adapters' parts
            raise torch.OutOfMemoryError
        return cat(tensors, dim=dim)

    monkeypatch.setattr("datadream.models.diffusion.lora.torch.cat", with_little_memory)
    first, second, third = ours.train(specs, [images()] * 3)
    assert [first.weights, second.weights] == expected
    assert not isinstance(third, Exception)


def test_out_of_memory_with_one_adapter_is_its_failure(pipeline_folder):
    ours = trainer(pipeline_folder)

    def without_memory(*_):
        raise torch.OutOfMemoryError

    ours._train = without_memory
    (error,) = ours.train([spec()], [images()])
    assert "does not suffice for one adapter. Lower adapt.batch_size" in str(error)
