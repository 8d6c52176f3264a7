"""Counters of the benchmarks, free of noise: work that must not creep back in."""

from benchmarks.adapt import count_work, write_photos


def test_training_adapters_does_no_work_twice(tmp_path):
    """Two adapters of four square photos, two steps of eight crops, one prompt."""
    counters = count_work(write_photos(tmp_path / "photos")[:2])
    plain, ours = counters["plain"], counters["ours"]
    assert ours["lora_parameters"] == plain["lora_parameters"]
    assert (ours["model_loads"], plain["model_loads"]) == (1, 4)
    assert (ours["vae_encodes_per_adapter"], plain["vae_encodes_per_adapter"]) == (4, 16)
    assert (ours["prompt_encodings_per_step"], plain["prompt_encodings_per_step"]) == (1, 8)
