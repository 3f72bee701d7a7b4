"""A preconditioned gradient against its dense twin, and what it asks of the gradient inside."""

import pytest
import torch
from torch import Tensor

from unitary_layers.linalg import LowRank
from unitary_layers.projunn import DenseGradient, UpdateRule
from unitary_layers.projunn.moments import Moments, PreconditionedGradient, Probes

M, N, ALPHA = 7, 5, 0.9
ORDERS = [("matmul", "rmatmul"), ("rmatmul", "matmul"), ("dense",)]


class Counting(DenseGradient):
    """A dense gradient that keeps the widths of the products that were asked of it."""

    asked: list[tuple[str, int]]

    def matmul(self, v: Tensor) -> Tensor:
        self.asked.append(("matmul", v.size(-1)))
        return super().matmul(v)

    def rmatmul(self, u: Tensor) -> Tensor:
        self.asked.append(("rmatmul", u.size(-1)))
        return super().rmatmul(u)


def counting(matrix: Tensor) -> Counting:
    gradient = Counting(matrix)
    object.__setattr__(gradient, "asked", [])  # a frozen dataclass
    return gradient


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def moments(*batch: int) -> Moments:
    return Moments(torch.rand(*batch, M, dtype=torch.float64), torch.rand(*batch, N, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_it_is_its_dense_twin_once_probes_have_seen_both_sides(order, earlier, dtype):
    g, before = torch.randn(2, M, N, dtype=dtype), moments(2)
    seen = Probes(torch.randn(2, M, 4, dtype=dtype), torch.randn(2, N, 4, dtype=dtype)) if earlier else None
    gradient = PreconditionedGradient(DenseGradient(g), before, ALPHA, generator(), seen)
    thin = {"matmul": torch.randn(2, N, 3, dtype=dtype), "rmatmul": torch.randn(2, M, 3, dtype=dtype)}
    for name in order:
        getattr(gradient, name)(*([thin[name]] if name in thin else []))
    rows, columns = before.averaged(gradient.probes().moments(), ALPHA)
    twin = g / (rows[..., :, None] * columns[..., None, :] / rows.mean(-1)[..., None, None]).sqrt()
    torch.testing.assert_close(gradient.dense(), twin)
    torch.testing.assert_close(gradient.matmul(thin["matmul"]), twin @ thin["matmul"])
    torch.testing.assert_close(gradient.rmatmul(thin["rmatmul"]), twin.mH @ thin["rmatmul"])


def test_the_probes_do_not_depend_on_the_product_that_takes_them_along():
    g, keys = torch.randn(N, N, dtype=torch.float64), [(0, 0)]
    streams, start = UpdateRule().streams(keys, g.device), Moments(*(torch.zeros(N, dtype=torch.float64),) * 2)
    alone = PreconditionedGradient(DenseGradient(g), start, ALPHA, streams).probes()
    along = PreconditionedGradient(DenseGradient(g), start, ALPHA, streams)
    along.rmatmul(torch.randn(N, 2, dtype=torch.float64))
    along.matmul(torch.randn(N, 2, dtype=torch.float64))
    for expected, found in zip(alone, along.probes(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("sampler", ["lsi", "power"])
def test_a_preconditioned_sample_asks_for_two_products_and_no_more(sampler):
    g = counting(torch.randn(N, N))
    rule = UpdateRule(rank=2, sampler=sampler, precondition=True)
    start = Moments(torch.zeros(N), torch.zeros(N))
    sample = rule.sample(g, [(0, 0)], moments=start)
    assert g.asked == [("rmatmul", 6), ("matmul", 6)]  # four probes each, next to the two columns of the sample
    assert sample.probes is not None


def test_the_first_sample_of_full_rank_is_the_preconditioned_gradient():
    """No moments yet: the row space found with unscaled rows is still all there is, and what is in it is exact."""
    g = torch.randn(N, N, dtype=torch.float64)
    rule, start = UpdateRule(rank=N, precondition=True), Moments(*(torch.zeros(N, dtype=torch.float64),) * 2)
    sample = rule.sample(DenseGradient(g), [(0, 0)], moments=start)
    rows, columns = rule.averaged(start, sample.probes)
    twin = g / (torch.outer(rows, columns) / rows.mean()).sqrt()
    torch.testing.assert_close(LowRank(*sample.low_rank).matrix(), twin)


def test_a_gradient_of_zeros_stays_one():
    start = Moments(torch.zeros(N), torch.zeros(N))
    sample = UpdateRule(precondition=True).sample(DenseGradient(torch.zeros(N, N)), [(0, 0)], moments=start)
    assert torch.equal(sample.low_rank.matrix(), torch.zeros(N, N))
    assert sample.probes is not None
    assert torch.equal(sample.probes.rows, torch.zeros(N, 4))
