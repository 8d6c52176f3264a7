"""A recorded function gives what it would give if it were called."""

import pytest
import torch

from datadream.runtime.cuda_graph import Recorded


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> torch.device:
    return torch.device(request.param)


def test_shapes_take_turns_and_what_is_read_beside_the_arguments_may_change_in_place(device):
    weight = torch.ones(3, device=device, requires_grad=True)

    def gradient(inputs: torch.Tensor, rows: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = inputs if rows is None else inputs[rows]
        loss = (chosen * weight).square().sum()
        return loss.detach(), torch.autograd.grad(loss, [weight])[0]

    recorded, found, expected = Recorded(gradient), [], []
    for step in range(9):
        inputs = torch.arange(3.0 + 3 * (step % 2), device=device).reshape(-1, 3) + step
        rows = torch.zeros(2, dtype=torch.long, device=device) if step % 3 else None
        expected.append([tensor.clone() for tensor in gradient(inputs, rows)])
        found.append(recorded(inputs, rows))
        with torch.no_grad():
            weight += 1
    # All at the end: a later call overwrites nothing that an earlier one returned.
    for one, other in zip(found, expected, strict=True):
        assert all(map(torch.equal, one, other))
