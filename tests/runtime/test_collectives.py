"""Shares of a batch, and sums over real processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from datadream.runtime.collectives import ALONE, Collectives, LostPeerError


@pytest.mark.parametrize(("n", "count"), [(64, 1), (64, 3), (7, 4), (2, 2), (1, 3)])
def test_shares_cover_a_batch_evenly(n, count):
    shares = [list(range(n))[Collectives(rank, count).share(n)] for rank in range(count)]
    assert [row for share in shares for row in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_sums_change_nothing():
    parameter = torch.ones(2, requires_grad=True)
    parameter.sum().backward()
    ALONE.sum(parameter.grad)
    ALONE.sum_gradients([parameter])
    assert parameter.grad.tolist() == [1, 1]


def test_gradients_are_summed_over_processes(tmp_path):
    mp.spawn(_sum_on, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == [[4.0, 6.0], [[10.0], [12.0]]]


def _sum_on(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    parameters = [torch.zeros(2), torch.zeros(2, 1)]
    parameters[0].grad = torch.tensor([1.0, 2.0]) + 2 * rank
    parameters[1].grad = torch.tensor([[4.0], [5.0]]) + 2 * rank
    Collectives(rank, 2).sum_gradients(parameters)
    torch.save([parameter.grad.tolist() for parameter in parameters], Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_a_rank_hears_that_another_is_gone(tmp_path):
    with pytest.raises(mp.ProcessExitedException, match="exit code 3"):
        mp.spawn(_lose_one_on, args=(str(tmp_path),), nprocs=2)


def _lose_one_on(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    met = Path(folder, "met")
    if rank == 1:
        while not met.exists():  # else the other might lose it while it starts
            time.sleep(0.01)
        os._exit(0)
    met.touch()
    try:
        Collectives(rank, 2).sum(torch.ones(2))
    except LostPeerError:
        os._exit(3)
