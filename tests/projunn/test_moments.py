"""A preconditioned gradient against its dense twin, and what it asks of the gradient inside."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from unitary_layers import UnitaryLinear
from unitary_layers.projunn import DenseGradient, UpdateRule
from unitary_layers.projunn.moments import Moments, PreconditionedGradient, Probes

M, N, ALPHA = 7, 5, 0.9
ORDERS = [("matmul", "rmatmul"), ("rmatmul", "matmul"), ("dense",)]


@dataclass(frozen=True)
class Listening(DenseGradient):
    """A dense gradient that keeps the products that were asked of it."""

    asked: list[tuple[str, Tensor]] = field(default_factory=list)

    def matmul(self, v: Tensor) -> Tensor:
        self.asked.append(("matmul", v))
        return super().matmul(v)

    def rmatmul(self, u: Tensor) -> Tensor:
        self.asked.append(("rmatmul", u))
        return super().rmatmul(u)


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
    without = PreconditionedGradient(DenseGradient(g), before, ALPHA, generator())
    thin = {"matmul": torch.randn(2, N, 3, dtype=dtype), "rmatmul": torch.randn(2, M, 3, dtype=dtype)}
    for name in order:
        first, _ = (getattr(p, name)(*([thin[name]] if name in thin else [])) for p in (gradient, without))
    probes = without.probes()
    if seen is not None:
        probes = Probes(probes.rows + seen.rows, probes.columns + seen.columns)
    rows, columns = before.averaged(probes.moments(), ALPHA)
    twin = g / (rows[..., :, None] * columns[..., None, :] / rows.mean(-1)[..., None, None]).sqrt()
    torch.testing.assert_close(first if order == ("dense",) else gradient.dense(), twin)
    torch.testing.assert_close(gradient.matmul(thin["matmul"]), twin @ thin["matmul"])
    torch.testing.assert_close(gradient.rmatmul(thin["rmatmul"]), twin.mH @ thin["rmatmul"])


def test_the_probes_do_not_depend_on_the_product_that_takes_them_along():
    g = torch.randn(N, N, dtype=torch.float64)
    streams, start = UpdateRule().streams([(0, 0)], g.device), Moments(*(torch.zeros(N, dtype=torch.float64),) * 2)
    alone = PreconditionedGradient(DenseGradient(g), start, ALPHA, streams).probes()
    along = PreconditionedGradient(DenseGradient(g), start, ALPHA, streams)
    along.rmatmul(torch.randn(N, 2, dtype=torch.float64))
    along.matmul(torch.randn(N, 2, dtype=torch.float64))
    for expected, found in zip(alone, along.probes(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("sampler", ["lsi", "power"])
def test_a_preconditioned_sample_asks_for_two_products_and_no_more(sampler):
    g = Listening(torch.randn(N, N))
    rule = UpdateRule(rank=2, sampler=sampler, precondition=True, direction="gradient")
    start = Moments(torch.zeros(N), torch.zeros(N))
    sample = rule.sample(g, [(0, 0)], moments=start)
    asked = [(name, thin.size(-1)) for name, thin in g.asked]
    assert asked == [("rmatmul", 6), ("matmul", 6)]  # four probes each, next to the two columns of the sample
    assert sample.probes is not None
    assert all(factor.mT.is_contiguous() for factor in (*sample.low_rank, *sample.probes))


def test_a_row_that_comes_alive_is_not_scaled_out_of_half_precision():
    """As a unit that was dead up to now: its moment is zero, and what it has is no reason to see nothing else."""
    alive = torch.ones(N)
    alive[0] = 0
    g = Listening(torch.randn(N, N))
    PreconditionedGradient(g, Moments(alive, torch.ones(N)), 0.99, generator()).rmatmul(torch.ones(N, 1))
    scales = g.asked[0][1][:, -1]
    assert scales.max() < 12 * scales.min()  # near 1 / sqrt(1 - alpha), as of a moment that has seen one step


def test_a_row_without_a_gradient_is_not_divided_by_zero():
    g, start = torch.randn(N, N), Moments(torch.zeros(N), torch.zeros(N))
    g[0] = 0
    sample = UpdateRule(rank=2, precondition=True, direction="gradient").sample(
        DenseGradient(g), [(0, 0)], moments=start
    )
    assert torch.isfinite(sample.low_rank.matrix()).all()
    assert torch.equal(sample.low_rank.left[0], torch.zeros(2))


def test_what_is_rounding_next_to_the_rest_stays_small():
    g, start = torch.randn(N, N), Moments(torch.zeros(N), torch.zeros(N))
    g[0] *= 1e-15
    sample = UpdateRule(rank=N, precondition=True, direction="gradient").sample(
        DenseGradient(g), [(0, 0)], moments=start
    )
    assert sample.low_rank.matrix()[0].abs().max() < 1e-9 * sample.low_rank.matrix().abs().max()


def test_a_gradient_whose_moments_overflow_is_refused_and_nothing_is_changed():
    """Its entries are finite and so are those of a row, but the mean square of a column is not."""
    layer = UnitaryLinear(16, 16, bias=False, update=UpdateRule(precondition=True, direction="gradient"))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.weight.grad = torch.randn(16, 16)
    layer.weight.grad[:, 2] = 6e18
    with pytest.raises(RuntimeError, match="expected a finite gradient"):
        layer.projunn_step()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_the_first_sample_of_full_rank_is_the_preconditioned_gradient():
    """No moments yet: the row space found with unscaled rows is still all there is, and what is in it is exact."""
    g = torch.randn(N, N, dtype=torch.float64)
    rule, start = (
        UpdateRule(rank=N, precondition=True, direction="gradient"),
        Moments(*(torch.zeros(N, dtype=torch.float64),) * 2),
    )
    sample = rule.sample(DenseGradient(g), [(0, 0)], moments=start)
    rows, columns = rule.averaged(start, sample.probes)
    twin = g / (torch.outer(rows, columns) / rows.mean()).sqrt()
    torch.testing.assert_close(sample.low_rank.matrix(), twin)


def test_a_gradient_of_zeros_stays_one():
    start = Moments(torch.zeros(N), torch.zeros(N))
    sample = UpdateRule(precondition=True, direction="gradient").sample(
        DenseGradient(torch.zeros(N, N)), [(0, 0)], moments=start
    )
    assert torch.equal(sample.low_rank.matrix(), torch.zeros(N, N))
    assert sample.probes is not None
    assert torch.equal(sample.probes.rows, torch.zeros(N, 4))
