"""Counters of the benchmarks, free of noise: work that must not creep back in."""

from benchmarks import adapt, classify, generate


def test_training_adapters_does_no_work_twice(tmp_path):
    """Two adapters of four square photos, two steps of eight crops, one prompt."""
    counters = adapt.count_work(adapt.write_photos(tmp_path / "photos")[:2])
    plain, ours = counters["plain"], counters["ours"]
    assert ours["lora_parameters"] == plain["lora_parameters"]
    assert (ours["model_loads"], plain["model_loads"]) == (1, 4)
    assert (ours["vae_encodes_per_adapter"], plain["vae_encodes_per_adapter"]) == (4, 16)
    assert (ours["prompt_encodings_per_step"], plain["prompt_encodings_per_step"]) == (1, 8)


def test_generating_does_no_work_twice(tmp_path):
    """Two adapters, three images of each, four steps with guidance: eight evaluations an image, and two prompts."""
    counters = generate.count_work(generate.write_adapters(tmp_path, 2), images=3, steps=4)
    assert counters["ours"] == {"model_loads": 1, "prompt_encodings": 4, "unet_evaluations": 48}
    assert counters["kept"] == {"model_loads": 1, "prompt_encodings": 12, "unet_evaluations": 48}
    assert counters["authors"] == {"model_loads": 2, "prompt_encodings": 12, "unet_evaluations": 48}


def test_classifying_encodes_no_token_in_vain_and_learns_what_a_plain_loop_learns():
    """Twenty prompts that begin alike, 19 images that the plain loop tests in batches of 8."""
    arms = classify.Arms(
        classify.narrow_clip(image_size=16, patch=8, layers=2), n_classes=20, n_images=19, batch_size=19
    )
    lengths = arms.tokens.argmax(dim=1) + 1
    shared = (arms.tokens == arms.tokens[0]).all(dim=0).int().cumprod(dim=0).sum()
    checked = arms.check_equal()
    tokens = int((lengths - shared).sum() + shared)
    assert tokens < 20 * 77 / 10
    assert checked.largest_weight_difference <= classify.TOLERANCE
    for work, plain_passes, plain_runs in (("step", 1, 2), ("evaluation", 3, 3)):
        plain, ours = checked.counters["plain"][work], checked.counters["ours"][work]
        assert ours == {"text_tokens": tokens, "text_passes": 1, "images": 19}
        assert plain == {"text_tokens": plain_runs * 20 * 77, "text_passes": plain_passes, "images": 19}
    with classify.counted({"dropped": arms.clip.model}) as counts:
        dropped, plain = arms.our_dropped_step(), arms.plain_step()
    assert counts["dropped"] == {"text_tokens": tokens, "text_passes": 1, "images": 19}
    assert abs(dropped - plain) > classify.TOLERANCE * plain
