"""Train the open_clip model from scratch on rendered glyphs and their captions.

The contrastive loss alone stays near chance for hundreds of steps on so few distinct captions, so a cross-entropy
over the class prompts runs beside it from the first step.
"""

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer

from datadream.models.tiny.glyphs import DIGIT_NAMES, class_prompts, sample_glyphs
from datadream.models.tiny.networks import clip_config
from datadream.models.tiny.training import StageRecord, Trainer

BATCH_SIZE = 128
LETTER_SHARE = 0.3
MAX_LOGIT_SCALE = 4.6052  # ln 100, CLIP's own bound
VALIDATION_IMAGES = 2000


def train_clip(
    masks: Tensor, validation_masks: Tensor, tokenizer: CLIPTokenizer, *, steps: int, seed: int
) -> tuple[open_clip.CLIP, StageRecord]:
    """A CLIP aligned on glyphs and captions; masks are [faces, 36, 64, 64] uint8."""
    # Of torch for initial weights; glyphs have a generator of their own.
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    model = open_clip.CLIP(**clip_config(len(tokenizer))["model_cfg"]).train()
    record = StageRecord(stage="clip", seed=seed, steps=steps, batch_size=BATCH_SIZE, faces=len(masks))
    trainer = Trainer(model, record, lr=1e-3, weight_decay=0.1)
    prompts = tokenize(tokenizer, class_prompts())
    for _ in range(steps):
        batch = sample_glyphs(masks, BATCH_SIZE, rng, letter_share=LETTER_SHARE)
        trainer.step(_loss(model, batch.images, tokenize(tokenizer, batch.captions), prompts, batch.labels))
        model.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
    model.eval()
    record.metrics = {"digit_accuracy": digit_accuracy(model, tokenizer, validation_masks, seed=seed)}
    return model, record


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids [n, 24], padded with the end token."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


@torch.inference_mode()
def digit_accuracy(model: open_clip.CLIP, tokenizer: CLIPTokenizer, masks: Tensor, *, seed: int) -> float:
    """Zero-shot accuracy among the ten digits on glyphs rendered from masks."""
    batch = sample_glyphs(masks, VALIDATION_IMAGES, torch.Generator().manual_seed(seed), letter_share=0)
    prompts = tokenize(tokenizer, class_prompts()[: len(DIGIT_NAMES)])
    similarity = model.encode_image(batch.images, normalize=True) @ model.encode_text(prompts, normalize=True).T
    return (similarity.argmax(dim=1) == batch.labels).float().mean().item()


def _loss(model: open_clip.CLIP, images: Tensor, captions: Tensor, prompts: Tensor, labels: Tensor) -> Tensor:
    distinct, caption_of = captions.unique(dim=0, return_inverse=True)
    texts = model.encode_text(torch.cat([distinct, prompts]), normalize=True)
    scaled = model.logit_scale.exp() * model.encode_image(images, normalize=True)
    to_classes = F.cross_entropy(scaled @ texts[len(distinct) :].T, labels)
    # Symmetric contrastive loss of logits [images, distinct captions]; every image of a caption is a positive of it.
    # A caption counts as often as the batch holds it, as if its copies were columns of their own.
    logits = scaled @ texts[: len(distinct)].T
    image_to_text = F.cross_entropy(logits + caption_of.bincount().log(), caption_of)
    is_own = F.one_hot(caption_of).bool()
    text_to_image = -(logits.T.log_softmax(dim=1) * is_own.T).sum() / len(logits)
    return (image_to_text + text_to_image) / 2 + to_classes
