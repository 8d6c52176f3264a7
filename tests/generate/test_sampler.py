"""Our images are the ones that plain diffusers generates with the same seed."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from datadream import recipes
from datadream.config import GenerateConfig
from datadream.generate.sampler import Sampler, centre_square
from datadream.methods import ImageRequest
from datadream.models.diffusion.pipeline import load_pipeline
from datadream.run.layout import ADAPTER_WEIGHTS
from tests.models.adapters import random_adapter

CONFIG = GenerateConfig(steps=4)
PROMPT = "a photo of a cat"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def adapters(pipeline_folder) -> dict[str, bytes]:
    return {f"class-{seed}": random_adapter(pipeline_folder, seed, scale=0.2) for seed in (1, 2)}


@pytest.fixture
def sampler(pipeline_folder) -> Sampler:
    return Sampler(load_pipeline(str(pipeline_folder), None, CPU, torch.float32), CONFIG, 32)


def requests(n: int, *adapter_ids: str, **changes) -> list[ImageRequest]:
    adapters = tuple((adapter_id, 1.0) for adapter_id in adapter_ids)
    return [ImageRequest(0, i, PROMPT, 100 + i, adapters, **changes) for i in range(n)]


def read_photo(key: str) -> Image.Image:
    return Image.fromarray(np.random.default_rng(int(key)).integers(0, 256, (40, 64, 3), dtype=np.uint8))


def worst_difference(ours: np.ndarray, plain: list[Image.Image]) -> int:
    return np.abs(ours.astype(int) - np.stack([np.asarray(image) for image in plain]).astype(int)).max()


def plain_pipeline(kind, folder, weights: bytes, tmp_path):
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(weights)
    pipeline = kind.from_pretrained(folder, safety_checker=None)
    pipeline.load_lora_weights(tmp_path)
    return pipeline


def test_from_noise(sampler, adapters, pipeline_folder, tmp_path):
    ours = sampler.generate(requests(3, "class-1"), adapters.__getitem__, read_photo)
    plain = plain_pipeline(StableDiffusionPipeline, pipeline_folder, adapters["class-1"], tmp_path)
    expected = [
        plain(
            PROMPT, num_inference_steps=4, guidance_scale=2.0, generator=torch.Generator().manual_seed(100 + i)
        ).images[0]
        for i in range(3)
    ]
    assert ours.shape == (3, 32, 32, 3)
    assert ours.dtype == np.uint8
    assert worst_difference(ours, expected) <= 2
    assert worst_difference(ours[:1], expected[1:2]) > 20


def test_is_synth_is_the_loop_that_the_paper_ran(pipeline_folder):
    """DISEF's: a padded photo, 15 of 20 steps of DPM-Solver++, guidance 8."""
    made = recipes.paper(method="is-synth")
    sampler = Sampler(load_pipeline(str(pipeline_folder), None, CPU, torch.float32), made.generate, 32)
    request = ImageRequest(0, 0, PROMPT, 100, (), "7", made.generate.strength)
    (ours,) = sampler.generate([request], lambda _: b"", read_photo)

    plain = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    scheduler = DPMSolverMultistepScheduler.from_config(plain.scheduler.config)
    scheduler.set_timesteps(20)
    photo = read_photo("7")  # 64 x 40
    square = Image.new("RGB", (64, 64))
    square.paste(photo, (0, 12))
    pixels = torch.from_numpy(np.asarray(square.resize((32, 32)))).permute(2, 0, 1)[None].float() / 127.5 - 1
    generator = torch.Generator().manual_seed(100)
    with torch.no_grad():
        latents = plain.vae.encode(pixels).latent_dist.sample(generator) * plain.vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator)
        latents = scheduler.add_noise(latents, noise, scheduler.timesteps[5:6])
        prompts = torch.cat(plain.encode_prompt(PROMPT, CPU, 1, True, negative_prompt="")[::-1])
        assert len(scheduler.timesteps[5:]) == 15
        for time in scheduler.timesteps[5:]:
            without, with_prompt = plain.unet(torch.cat([latents] * 2), time, prompts).sample.chunk(2)
            latents = scheduler.step(without + 8 * (with_prompt - without), time, latents).prev_sample
        image = plain.vae.decode(latents / plain.vae.config.scaling_factor).sample
    expected = ((image / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours.astype(int) - expected.astype(int)).max() <= 2


def test_a_merge_that_fails_half_way_is_not_taken_for_the_adapter_before_it(sampler, adapters):
    before = sampler.generate(requests(1, "class-1"), adapters.__getitem__, read_photo)
    state = safetensors.torch.load(adapters["class-2"])
    layer = next(name for name in state if "lora_B" in name or "lora.up" in name)
    other = safetensors.torch.save(state | {layer: state[layer][:-1].contiguous()})
    with pytest.raises(RuntimeError, match="size"):
        sampler.generate(requests(1, "class-3"), {"class-3": other}.__getitem__, read_photo)
    again = sampler.generate(requests(1, "class-1"), adapters.__getitem__, read_photo)
    assert np.array_equal(again, before)


def test_from_a_photo(sampler, adapters, pipeline_folder, tmp_path):
    asked = [ImageRequest(0, i, PROMPT, 100 + i, (("class-1", 1.0),), str(i), 0.5) for i in range(2)]
    ours = sampler.generate(asked, adapters.__getitem__, read_photo)
    plain = plain_pipeline(StableDiffusionImg2ImgPipeline, pipeline_folder, adapters["class-1"], tmp_path)
    settings = {"num_inference_steps": 4, "guidance_scale": 2.0, "strength": 0.5}
    expected = [
        plain(
            PROMPT, centre_square(read_photo(str(i)), 32), generator=torch.Generator().manual_seed(100 + i), **settings
        ).images[0]
        for i in range(2)
    ]
    assert worst_difference(ours, expected) <= 2


def test_a_mixture_of_lofts_adapters(sampler, pipeline_folder, tmp_path):
    """Rank 2, the UNet alone, half of each."""
    files = {name: random_adapter(pipeline_folder, seed, 0.3, 2, False) for seed, name in enumerate(("one", "other"))}
    asked = [replace(request, adapters=(("one", 0.5), ("other", 0.5))) for request in requests(2)]
    ours = sampler.generate(asked, files.__getitem__, read_photo)
    plain = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    for name, data in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / ADAPTER_WEIGHTS).write_bytes(data)
        plain.load_lora_weights(tmp_path / name, adapter_name=name)
    plain.set_adapters(list(files), [0.5, 0.5])
    settings = {"num_inference_steps": 4, "guidance_scale": 2.0}
    expected = [plain(PROMPT, generator=torch.Generator().manual_seed(100 + i), **settings).images[0] for i in (0, 1)]
    assert worst_difference(ours, expected) <= 2
    assert worst_difference(sampler.generate(requests(2), files.__getitem__, read_photo), expected) > 20


def test_an_image_does_not_depend_on_its_batch_or_on_the_adapters_before(sampler, adapters):
    batch = sampler.generate(requests(7, "class-1"), adapters.__getitem__, read_photo)
    sampler.generate(requests(2, "class-2"), adapters.__getitem__, read_photo)
    sampler.generate(requests(1), adapters.__getitem__, read_photo)
    alone = sampler.generate(requests(7, "class-1")[4:5], adapters.__getitem__, read_photo)
    assert np.abs(alone[0].astype(int) - batch[4].astype(int)).max() <= 1
    assert np.array_equal(sampler.generate(requests(7, "class-1"), adapters.__getitem__, read_photo), batch)


def test_images_of_several_prompts_are_those_of_each_prompt_in_their_order(sampler, adapters):
    prompts = [PROMPT, "a drawing of a dog", PROMPT, PROMPT, "a drawing of a dog"]
    asked = [replace(each, prompt=prompt) for each, prompt in zip(requests(5, "class-1"), prompts, strict=True)]
    ours = sampler.generate(asked, adapters.__getitem__, read_photo)
    for places in ((0, 2, 3), (1, 4)):
        own = sampler.generate([asked[place] for place in places], adapters.__getitem__, read_photo)
        assert np.array_equal(ours[list(places)], own)
    one_prompt = sampler.generate(requests(5, "class-1"), adapters.__getitem__, read_photo)
    assert not np.array_equal(ours[1], one_prompt[1])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")])
def test_out_of_memory_halves_the_batch(sampler, adapters, caplog, error):
    expected = sampler.generate(requests(7, "class-1"), adapters.__getitem__, read_photo)
    denoise, sizes = sampler._denoiser.denoise, []

    def with_little_memory(latents, *others):
        sizes.append(len(latents))
        if len(latents) > 3:
            raise error
        return denoise(latents, *others)

    sampler._denoiser.denoise = with_little_memory
    sampler.batch_size = 6
    found = sampler.generate(requests(7, "class-1"), adapters.__getitem__, read_photo)
    assert sizes == [6, 3, 3, 1]
    assert "going on with 3 images at once" in caplog.text
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_a_batch_is_begun_before_the_one_before_it_is_finished(sampler, adapters):
    """One, and never two: what is held is bounded."""
    expected = sampler.generate(requests(5, "class-1"), adapters.__getitem__, read_photo)
    sampler.batch_size, events, begin, finish = 2, [], sampler._begin, sampler._finish
    sampler._begin = lambda asked, *others: events.append(f"begin {asked[0].index}") or begin(asked, *others)
    sampler._finish = lambda begun: events.append("finish") or finish(begun)
    found = sampler.generate(requests(5, "class-1"), adapters.__getitem__, read_photo)
    assert events == ["begin 0", "begin 2", "finish", "begin 4", "finish", "finish"]
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_the_fastest_batch_is_a_part_of_a_chunk_that_fits(sampler, adapters):
    expected = sampler.generate(requests(2, "class-1"), adapters.__getitem__, read_photo)
    assert sampler.fastest_batch() in (13, 25, 50)
    assert np.array_equal(sampler.generate(requests(2, "class-1"), adapters.__getitem__, read_photo), expected)
    seconds_per_image = sampler._seconds_per_image

    def within(most: int) -> int:
        def measured(batch: int) -> float:
            if batch > most:
                raise torch.OutOfMemoryError
            return seconds_per_image(batch)

        sampler._seconds_per_image = measured
        return sampler.fastest_batch()

    assert [within(most) for most in (13, 12, 5, 0)] == [13, 7, 4, 1]


def test_compiled_blocks_outlive_every_merge(sampler, adapters):
    """No adapter, prompt or weight of a mixture compiles anything anew: ten merges, counted by Dynamo."""
    pipeline = sampler._from_noise
    expected = sampler.generate(requests(3, "class-1"), adapters.__getitem__, read_photo)
    pipeline.unet.compile_repeated_blocks(backend="eager", fullgraph=True)
    torch._dynamo.reset()
    found = sampler.generate(requests(3, "class-1"), adapters.__getitem__, read_photo)
    assert np.abs(found.astype(int) - expected).max() <= 1
    counters = torch._dynamo.utils.counters["stats"]
    graphs = counters["unique_graphs"]
    assert graphs > 0
    for number in range(10):
        mixture = (("class-1", number / 10), ("class-2", 1 - number / 10))
        asked = [ImageRequest(0, i, f"{PROMPT} {number}", i, mixture) for i in range(3)]
        sampler.generate(asked, adapters.__getitem__, read_photo)
    assert counters["unique_graphs"] == graphs


def test_out_of_memory_with_one_image_says_what_to_lower(sampler):
    def without_memory(*_):
        raise torch.OutOfMemoryError

    sampler._denoiser.denoise = without_memory
    with pytest.raises(MemoryError, match=r"Lower diffusion\.resolution"):
        sampler.generate(requests(2), None, read_photo)


def test_what_the_decoder_cannot_hold_is_decoded_in_fp32(sampler, adapters):
    """Weights that overflow fp16 inside the decoder, whose norms make small numbers of them again."""
    vae = sampler._from_noise.vae
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(1e5)
    expected = sampler.generate(requests(2, "class-1"), adapters.__getitem__, read_photo)
    sampler._vae = deepcopy(vae).half()
    found = sampler.generate(requests(2, "class-1"), adapters.__getitem__, read_photo)
    assert found.std() > 0
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_values_that_are_no_numbers_are_an_error_and_no_black_image(sampler, pipeline_folder):
    held = Sampler(sampler._from_noise, CONFIG.model_copy(update={"decode_precision": "fp16"}), 32)
    with torch.no_grad():
        held._vae.decoder.conv_out.bias.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match=r"pixels that are no numbers .*decode_precision=fp32"):
        held.generate(requests(2), None, read_photo)
    with torch.no_grad():
        sampler._from_noise.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"latents that are no numbers .*generate.precision"):
        sampler.generate(requests(2), None, read_photo)


@pytest.mark.parametrize("n", [1, 7, 16])
def test_latents_are_those_of_plain_diffusers(sampler, adapters, pipeline_folder, tmp_path, n):
    """For any size of batch, after other adapters, with a scheduler that adds noise of its own."""
    sampler = Sampler(sampler._from_noise, CONFIG.model_copy(update={"scheduler": "DDPMScheduler"}), 32)
    latents = []
    sampler._decode = lambda part, vae: latents.append(part.clone()) or torch.zeros(len(part), 3, 1, 1)
    sampler.generate(requests(2, "class-2"), adapters.__getitem__, read_photo)
    latents.clear()
    sampler.generate(requests(n, "class-1"), adapters.__getitem__, read_photo)
    plain = plain_pipeline(StableDiffusionPipeline, pipeline_folder, adapters["class-1"], tmp_path)
    plain.scheduler = DDPMScheduler.from_config(plain.scheduler.config)
    generators = [torch.Generator().manual_seed(100 + i) for i in range(n)]
    settings = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "latent"}
    expected = plain([PROMPT] * n, generator=generators, **settings).images
    assert (torch.cat(latents) - expected).norm() / expected.norm() < 1e-4


def test_guidance_on_an_interval_evaluates_the_prompt_alone_elsewhere(sampler, adapters):
    """DDIM's four steps are at noise levels of 0.75, 0.5, 0.25 and 0.0 of 1."""
    pipeline, sizes = sampler._from_noise, []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))

    def generate(interval: tuple[float, float], scale: float = 2.0) -> np.ndarray:
        sizes.clear()
        config = CONFIG.model_copy(update={"guidance_interval": interval, "guidance_scale": scale})
        return Sampler(pipeline, config, 32).generate(requests(2), adapters.__getitem__, read_photo)

    everywhere = generate((0, 1))
    assert sizes == [4, 4, 4, 4]
    assert not np.array_equal(generate((0.2, 0.6)), everywhere)
    assert sizes == [2, 4, 4, 2]
    assert np.abs(generate((0.9, 1)).astype(int) - generate((0, 1), scale=1.0)).max() <= 1


def test_adapters_of_two_runs_may_have_the_same_id(sampler, adapters):
    expected = sampler.generate(requests(2, "class-2"), adapters.__getitem__, read_photo)
    sampler.generate(requests(2, "class-1"), adapters.__getitem__, read_photo, run="one")
    other = {"class-1": adapters["class-2"]}
    found = sampler.generate(requests(2, "class-1"), other.__getitem__, read_photo, run="other")
    assert np.array_equal(found, expected)


def test_other_schedulers_by_name(pipeline_folder, adapters):
    pipeline = load_pipeline(str(pipeline_folder), None, CPU, torch.float32)
    config = CONFIG.model_copy(update={"scheduler": "DPMSolverMultistepScheduler"})
    images = Sampler(pipeline, config, 32).generate(requests(1), adapters.__getitem__, read_photo)
    assert images.std() > 1
    with pytest.raises(ValueError, match="generate.scheduler is 'DDIMSchedular'.*Did you mean 'DDIMScheduler'"):
        Sampler(pipeline, CONFIG.model_copy(update={"scheduler": "DDIMSchedular"}), 32)
