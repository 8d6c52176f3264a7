"""Train the open_clip model from scratch on painted images and their captions.

The contrastive loss alone stays near chance for hundreds of steps on so few distinct captions, so a cross-entropy
over the plain captions of all characters, and of what else the batch shows, runs beside it from the first step.
"""

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer

from datadream.models.tiny.glyphs import CLASS_NAMES
from datadream.models.tiny.networks import clip_config
from datadream.models.tiny.painting import Batch, caption
from datadream.models.tiny.training import Sampler, StageRecord, Trainer

MAX_LOGIT_SCALE = 4.6052  # ln 100, CLIP's own bound
VALIDATION_IMAGES = 2000


def train_clip(
    sample: Sampler, sample_held_out: Sampler, tokenizer: CLIPTokenizer, *, steps: int, batch_size: int, seed: int
) -> tuple[open_clip.CLIP, StageRecord]:
    """A CLIP aligned on images and captions."""
    # Of torch for initial weights; images have a generator of their own.
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    model = open_clip.CLIP(**clip_config(len(tokenizer))["model_cfg"]).train()
    record = StageRecord(stage="clip", seed=seed, steps=steps, batch_size=batch_size)
    trainer = Trainer(model, record, lr=1e-3, weight_decay=0.1)
    tokens = Tokens(tokenizer)
    for _ in range(steps):
        trainer.step(_loss(model, sample(batch_size, rng), tokens))
        model.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
    model.eval()
    held_out = sample_held_out(VALIDATION_IMAGES, rng)
    record.metrics = {"accuracy": accuracy(model, tokenizer, held_out), "among": len(set(held_out.subjects))}
    return model, record


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids [n, 24], padded with the end token."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


class Tokens:
    """Token ids of captions, each spelled once."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, Tensor] = {}

    def __call__(self, texts: list[str]) -> Tensor:
        if new := [text for text in dict.fromkeys(texts) if text not in self.known]:
            self.known |= zip(new, tokenize(self.tokenizer, new), strict=True)
        return torch.stack([self.known[text] for text in texts])


@torch.inference_mode()
def accuracy(model: open_clip.CLIP, tokenizer: CLIPTokenizer, batch: Batch) -> float:
    """Zero-shot accuracy among all that the batch shows."""
    subjects = sorted(set(batch.subjects))
    texts = model.encode_text(tokenize(tokenizer, [caption(subject) for subject in subjects]), normalize=True)
    found = (model.encode_image(batch.images, normalize=True) @ texts.T).argmax(dim=1).tolist()
    return sum(subjects[place] == own for place, own in zip(found, batch.subjects, strict=True)) / len(found)


def _loss(model: open_clip.CLIP, batch: Batch, tokens: Tokens) -> Tensor:
    distinct, prompts = (list(dict.fromkeys(names)) for names in (batch.captions, [*CLASS_NAMES, *batch.subjects]))
    caption_of = torch.tensor([distinct.index(text) for text in batch.captions])
    labels = torch.tensor([prompts.index(subject) for subject in batch.subjects])
    texts = model.encode_text(tokens([*distinct, *map(caption, prompts)]), normalize=True)
    scaled = model.logit_scale.exp() * model.encode_image(batch.images, normalize=True)
    to_classes = F.cross_entropy(scaled @ texts[len(distinct) :].T, labels)
    # Symmetric contrastive loss of logits [images, distinct captions]; every image of a caption is a positive of it.
    # A caption counts as often as the batch holds it, as if its copies were columns of their own.
    logits = scaled @ texts[: len(distinct)].T
    image_to_text = F.cross_entropy(logits + caption_of.bincount().log(), caption_of)
    is_own = F.one_hot(caption_of).bool()
    text_to_image = -(logits.T.log_softmax(dim=1) * is_own.T).sum() / len(logits)
    return (image_to_text + text_to_image) / 2 + to_classes
