"""What the authors' classifier does, on plain open_clip: every prompt in full for every batch, LoRA as loralib has it.

LoRA of q and v is a second product of dense weights with the activations (loralib's MergedLinear), and the text tower
is checkpointed block by block, as in their code. Attention is PyTorch's fused one, which theirs is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EVAL_BATCH = 8
"""As in the authors' evaluation."""


class MergedLoraAttention(nn.Module):
    """Self-attention with the weights of an nn.MultiheadAttention, and LoRA on its q and v."""

    def __init__(self, attention: nn.MultiheadAttention, rank: int, alpha: float) -> None:
        super().__init__()
        self.weight, self.bias, self.out = attention.in_proj_weight, attention.in_proj_bias, attention.out_proj
        self.heads, self.scale = attention.num_heads, alpha / rank
        width, device = attention.embed_dim, attention.in_proj_weight.device
        self.lora_A = nn.Parameter(torch.zeros(2 * rank, width, device=device))
        self.lora_B = nn.Parameter(torch.zeros(2 * width, rank, device=device))
        self.register_buffer("adapted", torch.tensor([True, False, True], device=device).repeat_interleave(width))

    def forward(self, x: Tensor, *_: Tensor, attn_mask: Tensor | None = None, **__: object) -> tuple[Tensor]:
        update = F.conv1d(self.lora_A[None], self.lora_B[..., None], groups=2)[0]
        padded = update.new_zeros(len(self.adapted), x.shape[-1])
        padded[self.adapted] = update
        packed = F.linear(x, self.weight, self.bias) + x @ padded.T * self.scale
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in packed.chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        return (self.out(attended.transpose(1, 2).flatten(2)),)


class PlainClassifier:
    """A CLIP with that LoRA on both towers, and its optimiser."""

    def __init__(self, model: nn.Module, state: Mapping[str, Tensor], rank: int, alpha: float, rate: float) -> None:
        """Takes over an open_clip model; `state` is where LoRA starts, as `trainable_state` names it."""
        self.model = model.requires_grad_(False)
        self.lora: dict[str, MergedLoraAttention] = {}
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.MultiheadAttention):
                self.lora[name] = MergedLoraAttention(module, rank, alpha)
                model.set_submodule(name, self.lora[name])
                with torch.no_grad():
                    for letter in "AB":
                        own = torch.cat([state[f"{name}.{projection}.lora_{letter}"] for projection in "qv"])
                        getattr(self.lora[name], f"lora_{letter}").copy_(own)
        parameters = [parameter for module in self.lora.values() for parameter in (module.lora_A, module.lora_B)]
        self.optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)

    def state(self) -> dict[str, Tensor]:
        """CPU copies of LoRA, as `trainable_state` names it."""
        return {
            f"{name}.{projection}.lora_{letter}": part
            for name, module in self.lora.items()
            for letter, tensor in (("A", module.lora_A), ("B", module.lora_B))
            for projection, part in zip("qv", tensor.detach().cpu().chunk(2), strict=True)
        }

    def step(self, pixels: Tensor, labels: Tensor, tokens: Tensor) -> float:
        """One optimiser step on normalised images; returns the loss."""
        self.model.transformer.grad_checkpointing = True
        loss = F.cross_entropy(self._logits(pixels, tokens), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def count_correct(self, pixels: Tensor, labels: Tensor, tokens: Tensor) -> int:
        """Photos that are recognised, eight at a time."""
        self.model.transformer.grad_checkpointing = False
        batches: Iterable[tuple[Tensor, Tensor]] = zip(pixels.split(EVAL_BATCH), labels.split(EVAL_BATCH), strict=True)
        return sum(int((self._logits(batch, tokens).argmax(dim=1) == own).sum()) for batch, own in batches)

    def _logits(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        images = self.model.encode_image(pixels, normalize=True)
        return self.model.logit_scale.exp() * images @ self.model.encode_text(tokens, normalize=True).T
