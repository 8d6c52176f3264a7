"""Counters of the benchmarks, free of noise: work that must not creep back in."""

from benchmarks import adapt, generate


def test_training_adapters_does_no_work_twice(tmp_path):
    """Two adapters of four square photos, two steps of eight crops, one prompt."""
    counters = adapt.count_work(adapt.write_photos(tmp_path / "photos")[:2])
    plain, ours = counters["plain"], counters["ours"]
    assert ours["lora_parameters"] == plain["lora_parameters"]
    assert (ours["model_loads"], plain["model_loads"]) == (1, 4)
    assert (ours["vae_encodes_per_adapter"], plain["vae_encodes_per_adapter"]) == (4, 16)
    assert (ours["prompt_encodings_per_step"], plain["prompt_encodings_per_step"]) == (1, 8)


def test_drawing_does_no_work_twice(tmp_path):
    """Two adapters, three images of each, four steps with guidance: eight evaluations an image, and two prompts."""
    counters = generate.count_work(generate.write_adapters(tmp_path, 2), images=3, steps=4)
    assert counters["ours"] == {"model_loads": 1, "prompt_encodings": 4, "unet_evaluations": 48}
    assert counters["kept"] == {"model_loads": 1, "prompt_encodings": 12, "unet_evaluations": 48}
    assert counters["authors"] == {"model_loads": 2, "prompt_encodings": 12, "unet_evaluations": 48}
