"""The recurrence by the fast transform against that by the assembled matrix: all results and gradients."""

import pytest
import torch
from closeness import assert_rounding
from torch import Tensor, nn

from unitary_layers import ModReLU
from unitary_layers.layers.base.signs import assembled
from unitary_layers.layers.recurrent import signed
from unitary_layers.layers.recurrent.scan import scan

N, BLOCK, SIZES = 12, 4, {"padded": [3, 3, 3, 3], "packed": [3, 3, 1, 1]}
ACTIVATIONS = {"identity": nn.Identity(), "relu": nn.ReLU(), "modrelu": ModReLU(N, dtype=torch.float64)}


def outcome(by_transform: bool, sizes: list[int], stages: int, activation: nn.Module, reverse: bool) -> list[Tensor]:
    torch.manual_seed(0)
    leaves = [torch.randn(sum(sizes), N), torch.randn(3, N), torch.randn(stages, N).sign()]
    leaves = [leaf.double().requires_grad_() for leaf in leaves]
    projected, h_0, signs = leaves
    lengths = len(sizes) if sizes[0] == sizes[-1] else torch.tensor(sizes)
    if by_transform:
        results = signed.signed_scan(projected, lengths, h_0, signs, BLOCK, activation, reverse=reverse)
    else:
        results = scan(projected, lengths, h_0, assembled(signs, BLOCK), activation, reverse=reverse)
    loss = sum((r * torch.randn_like(r)).sum() for r in results)
    return [*results, *torch.autograd.grad(loss, [*leaves, *activation.parameters()])]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
def test_the_transform_gives_what_the_matrix_gives(sizes, stages, activation, reverse, monkeypatch):
    monkeypatch.setattr(signed, "FAST", 1)
    monkeypatch.setattr(signed, "ROWS", 2 * N)  # more than one part, the last of them short
    monkeypatch.setattr(signed, "scan", None)
    of = (sizes, stages, activation, reverse)
    for mine, theirs in zip(outcome(True, *of), outcome(False, *of), strict=True):
        assert_rounding(mine, theirs, n=N * len(sizes))


def test_wide_recurrences_take_the_transform_and_narrow_ones_the_matrix(monkeypatch):
    monkeypatch.setattr(signed, "scan", lambda *args, **options: "the matrix")
    for n, taken in ((signed.FAST, False), (signed.FAST // 2, True)):
        x = torch.randn(2, n)
        found = signed.signed_scan(x, 2, x[:1], torch.ones(1, n), None, nn.Identity())
        assert (found == "the matrix") is taken
