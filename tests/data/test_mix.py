"""Mixup and CutMix: seeded, shared among workers by their seed, and as much of each image as the labels say."""

from __future__ import annotations

import pytest
import torch

from datadream.config import ClassifyConfig
from datadream.data.mix import draw_mix


def mixes(n: int = 400, size: int = 32, **changes):
    return [draw_mix(ClassifyConfig(**changes), size, seed) for seed in range(n)]


def test_nothing_is_mixed_unless_asked_for():
    assert mixes(5, mix_probability=1.0) == [None] * 5


def test_a_share_of_the_batches_is_mixed_either_way():
    batches = mixes(mixup=1.0, cutmix=1.0, mix_probability=0.5)
    mixed = [mix for mix in batches if mix]
    assert 160 < len(mixed) < 240
    assert 0.4 < sum(mix.box is None for mix in mixed) / len(mixed) < 0.6
    assert batches == mixes(mixup=1.0, cutmix=1.0, mix_probability=0.5)


@pytest.mark.parametrize(("alpha", "spread"), [(1.0, 1 / 12), (0.2, 0.25 / 1.4)])
def test_shares_follow_the_beta_distribution(alpha, spread):
    shares = torch.tensor([mix.share for mix in mixes(2000, mixup=alpha, mix_probability=1.0)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(spread, abs=0.015)


def test_mixup_blends_and_cutmix_pastes_as_much_as_the_share_says():
    own, others = torch.ones(2, 3, 32, 32), torch.zeros(2, 3, 32, 32)
    for changes in ({"mixup": 1.0}, {"cutmix": 1.0}):
        for mix in mixes(50, mix_probability=1.0, **changes):
            mixed = mix.apply(own, others)
            torch.testing.assert_close(mixed.mean(), torch.tensor(mix.share), atol=1e-5, rtol=0, check_dtype=False)
            assert mix.box is None or set(mixed.unique().tolist()) <= {0.0, 1.0}
    assert own.min() == 1, "the originals stay as they are"
