"""RandAugment: torchvision's operations, each image its own."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2

from datadream.data.rand_augment import SIGNED, UNSIGNED, rand_augment

N_OPERATIONS = len(SIGNED) + len(UNSIGNED)
GEOMETRY = ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"]
SIGNED_NAMES = [*GEOMETRY, "Brightness", "Color", "Contrast", "Sharpness"]
NAMES = [*SIGNED_NAMES, "Identity", "Posterize", "Solarize", "AutoContrast", "Equalize"]


def photos(n: int) -> torch.Tensor:
    return torch.randint(256, (n, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class OneOperation(v2.RandAugment):
    """torchvision's transform with its choice of operation made."""

    def __init__(self, name: str, magnitude: int) -> None:
        super().__init__(num_ops=1, magnitude=magnitude)
        self._AUGMENTATION_SPACE = {name: self._AUGMENTATION_SPACE[name]}


@pytest.mark.parametrize("magnitude", [9, 30])
def test_every_operation_is_torchvisions(magnitude):
    images = photos(2 * N_OPERATIONS)
    which = (torch.arange(N_OPERATIONS).repeat_interleave(2) + 0.5) / N_OPERATIONS
    sign = torch.tensor([0.25, 0.75]).repeat(N_OPERATIONS)
    changed = rand_augment(images, torch.stack([which, sign], dim=1), magnitude)
    torch.manual_seed(0)  # theirs draw a sign each time: of 12 at least one of each
    for row, (image, result) in enumerate(zip(images, changed, strict=True)):
        operation = OneOperation(NAMES[row // 2], magnitude)
        possible = [operation(image) for _ in range(12)]
        off_by = min((result.int() - each.int()).abs().max().item() for each in possible)
        assert off_by <= 1, f"{NAMES[row // 2]}: more than rounding"
        assert row % 2 or NAMES[row // 2] not in SIGNED_NAMES or not torch.equal(result, changed[row + 1])


def test_operations_follow_each_other():
    images, numbers = photos(40), torch.rand(40, 4, generator=torch.Generator().manual_seed(1))
    twice = rand_augment(rand_augment(images, numbers[:, :2], 9), numbers[:, 2:], 9)
    assert torch.equal(rand_augment(images, numbers, 9), twice)
    assert len({tuple(row) for row in (numbers[:, ::2] * N_OPERATIONS).long().tolist()}) > 20
