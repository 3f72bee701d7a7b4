"""The losses by their formulas, their reductions, and what they do not see."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from unitary_layers.robust import (
    CertificateRegularizer,
    LogitAnnealingLoss,
    MarginCrossEntropyLoss,
    UnitNormLinear,
    certified_radius,
)

EPS = torch.finfo(torch.float64).eps
LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])
HEAD = UnitNormLinear(5, 4, dtype=torch.float64)
LOSSES = (
    MarginCrossEntropyLoss(0.5, 0.1),
    LogitAnnealingLoss(2.0, 0.75),
    LogitAnnealingLoss(0.5, 0.1, power=0.5),
    CertificateRegularizer(0.1, HEAD, 2.0),
)
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{type(loss).__name__}({loss.extra_repr()})")


def slow(logits: Tensor, target: int, offset: float, temperature: float, power: float) -> Tensor:
    """One sample, letter by letter."""
    z = [(logits[j] - (offset if j == target else 0)) / temperature for j in range(len(logits))]
    p = z[target].exp() / sum(value.exp() for value in z)
    return -temperature * (1 - p) ** power * p.log()


@pytest.mark.parametrize(("offset", "temperature", "power"), [(0.5, 0.4, 0), (0.5, 0.4, 5), (2.0, 0.75, 2.5)])
def test_losses_are_their_formulas(offset, temperature, power):
    expected = torch.stack([slow(z, int(y), offset, temperature, power) for z, y in zip(LOGITS, TARGETS, strict=True)])
    loss = LogitAnnealingLoss(offset, temperature, power, reduction="none")(LOGITS, TARGETS)
    torch.testing.assert_close(loss, expected, rtol=1000 * EPS, atol=0)
    if power == 0:
        loss = MarginCrossEntropyLoss(offset, temperature, reduction="none")(LOGITS, TARGETS)
        torch.testing.assert_close(loss, expected, rtol=1000 * EPS, atol=0)


@every_loss
def test_losses_reduce_and_travel(loss):
    each = copy.deepcopy(loss)
    each.reduction = "none"
    assert each(LOGITS, TARGETS).shape == (6,)
    torch.testing.assert_close(loss(LOGITS, TARGETS), each(LOGITS, TARGETS).mean())
    each.reduction = "sum"
    torch.testing.assert_close(loss(LOGITS, TARGETS) * 6, each(LOGITS, TARGETS))
    again = pickle.loads(pickle.dumps(loss))
    assert torch.equal(again(LOGITS, TARGETS), loss(LOGITS, TARGETS))


@every_loss
def test_gradients_are_right_and_finite_however_large_the_margin(loss):
    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, TARGETS), logits)
    for scale in (0.0, 1e3, 1e30):
        logits = (scale * nn.functional.one_hot(TARGETS, 4).double()).requires_grad_()
        value = loss(logits, TARGETS)
        value.backward()
        assert value.isfinite()
        assert logits.grad.isfinite().all()


def test_a_head_makes_the_loss_blind_to_its_size():
    head = nn.Linear(5, 3, bias=False, dtype=torch.float64)
    x, targets = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), TARGETS[:4] % 3
    loss = MarginCrossEntropyLoss(0.1, 0.1, head=head)
    before = loss(head(x), targets).item()
    largest = max((a - b).norm().item() for a in head.weight for b in head.weight)
    assert before == pytest.approx(MarginCrossEntropyLoss(0.1, 0.1)(head(x) / largest, targets).item(), rel=100 * EPS)
    with torch.no_grad():
        head.weight *= 7
    assert loss(head(x), targets).item() == pytest.approx(before, rel=100 * EPS)


def test_the_regulariser_is_the_mean_radius_of_what_is_right():
    radii = certified_radius(LOGITS, HEAD.matrix, 2.0, TARGETS)
    assert CertificateRegularizer(0.1, HEAD, 2.0)(LOGITS, TARGETS).item() == pytest.approx(-0.1 * radii.mean().item())
    plain = nn.Linear(5, 4, dtype=torch.float64)
    radii = certified_radius(LOGITS, plain.weight, targets=TARGETS)
    assert CertificateRegularizer(1.0, plain, reduction="sum")(LOGITS, TARGETS).item() == pytest.approx(
        -radii.sum().item()
    )


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="expected a positive temperature, got 0"):
        MarginCrossEntropyLoss(0.5, 0)
    with pytest.raises(ValueError, match=r"expected reduction to be one of .* got 'batchmean'"):
        CertificateRegularizer(0.5, HEAD, reduction="batchmean")
    with pytest.raises(ValueError, match="expected a power of at least 0, got -1"):
        LogitAnnealingLoss(power=-1)
