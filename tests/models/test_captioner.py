"""Models that caption photos by themselves and models that are asked, each as plain transformers has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor, LlavaForConditionalGeneration, LlavaProcessor

from datadream.models.captioner import MOST_TOKENS, Captioner, check_captioner
from tests.tiny_captioners import save_blip, save_llava
from tests.tiny_clip import save_tiny_clip

CPU = torch.device("cpu")


def photo(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8))


def test_a_model_that_captions_by_itself(tmp_path):
    folder = save_blip(tmp_path)
    check_captioner(str(folder))
    found = Captioner(str(folder), CPU).caption(photo(0), "red fox")
    model, processor = BlipForConditionalGeneration.from_pretrained(folder), BlipProcessor.from_pretrained(folder)
    tokens = model.generate(**processor(photo(0), return_tensors="pt"), max_new_tokens=MOST_TOKENS, do_sample=False)
    assert found == " ".join(processor.decode(tokens[0], skip_special_tokens=True).split()) != ""


def test_a_model_that_is_asked_answers_without_the_question(tmp_path):
    folder = save_llava(tmp_path)
    check_captioner(str(folder))
    captioner = Captioner(str(folder), CPU)
    found = captioner.caption(photo(0), "red fox")
    model, processor = LlavaForConditionalGeneration.from_pretrained(folder), LlavaProcessor.from_pretrained(folder)
    question = "<image>Provide a detailed caption for the image focusing on the object, knowing it's a red fox."
    inputs = processor(images=photo(0), text=question, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=MOST_TOKENS, do_sample=False)
    assert found == " ".join(
        processor.decode(tokens[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).split()
    )
    assert found == captioner.caption(photo(0), "red fox")
    assert "P r o v i d e" not in found


def test_what_is_no_captioner_is_told(tmp_path: Path):
    with pytest.raises(ValueError, match="data.captioner '.*nowhere' is neither a folder nor a model"):
        check_captioner(str(tmp_path / "nowhere"))
    folder = save_tiny_clip(tmp_path / "clip")
    (folder / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="is a clip, which makes no text of images. Use one such as Salesforce/blip"):
        check_captioner(str(folder))
