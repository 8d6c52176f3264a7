"""Captions of photos by a model of transformers: BLIP and its like, or one that is asked, as LLaVA is."""

from __future__ import annotations

import torch
from PIL import Image

from datadream.models.source import resolve
from datadream.runtime.device import dtype_of

QUESTION = "Provide a detailed caption for the image focusing on the object, knowing it's a {name}."
"""What models that chat are asked (DISEF's words)."""
MOST_TOKENS = 128
"""Of a caption: Stable Diffusion's text encoder reads 77, and cuts what is longer."""


def check_captioner(model: str) -> None:
    """Raises ValueError when transformers has no such model that makes text of an image; reads its config alone."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    try:
        kind = AutoConfig.from_pretrained(resolve(model)).model_type
    except (OSError, ValueError) as error:
        raise ValueError(
            f"data.captioner {model!r} is neither a folder nor a model that the Hub hands out here "
            f"({type(error).__name__}). Check the id and the network, or give a local folder."
        ) from None
    if kind not in KNOWN:
        raise ValueError(
            f"data.captioner {model!r} is a {kind}, which makes no text of images. Use one such as "
            "Salesforce/blip-image-captioning-large or llava-hf/llava-1.5-7b-hf."
        )


class Captioner:
    """A model on one device."""

    def __init__(self, model: str, device: torch.device) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder, dtype = resolve(model), dtype_of("auto", device, on_cuda=torch.bfloat16)
        self._processor = AutoProcessor.from_pretrained(folder)
        self._model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).to(device).eval()
        self._device, self._dtype = device, dtype

    @torch.no_grad()
    def caption(self, photo: Image.Image, name: str) -> str:
        """What the model says of a photo of class `name`, the likeliest word each time, so that it is the same text on
        every worker; raises ValueError when it says nothing."""
        question = None
        if getattr(self._processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": QUESTION.format(name=name)}]
            question = self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        inputs = self._processor(images=photo, text=question, return_tensors="pt").to(self._device, self._dtype)
        tokens = self._model.generate(**inputs, max_new_tokens=MOST_TOKENS, do_sample=False)
        # Who is asked repeats the question before the answer.
        answer = tokens[0, inputs["input_ids"].shape[1] if question else 0 :]
        caption = " ".join(self._processor.decode(answer, skip_special_tokens=True).split())
        if not caption:
            raise ValueError("the model of data.captioner gave an empty caption. Use another, or data.captions.")
        return caption
