"""Losses that ask for a margin, and not only for the right class.

Sources: B. Prach, C. Lampert, "Almost-orthogonal layers for efficient general-purpose Lipschitz networks", ECCV 2022,
arXiv 2208.03160, section 4 (offset and temperature); B.-H. Lai et al., "Enhancing certified robustness via block
reflector orthogonal layers and logit annealing loss", ICML 2025, arXiv 2505.15174, equation 9 (annealing); S. Singla,
S. Singla, S. Feizi, "Improved deterministic l2 robustness on CIFAR-10 and CIFAR-100", ICLR 2022, arXiv 2108.04062
(certificate regularisation).
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .certificate import certified_radius, row_distances, rows_of

REDUCTIONS = ("none", "mean", "sum")

# Note [Margins in units of distance]
# A 1-Lipschitz network cannot make its logits large, so a cross entropy sees small margins and goes on asking for
# larger ones; the temperature says what counts as large. A head whose rows may grow would answer by growing, with which
# the logits grow and no radius does. So logits are to be measured in units of distance: the rows have norm 1, as in
# UnitNormLinear, or the loss is given the head and divides the logits by the largest distance of two rows.


class _Loss(nn.Module):
    """What the losses share: an optional head, and the reduction over the batch."""

    def __init__(self, head: nn.Module | None, reduction: str) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"expected reduction to be one of {REDUCTIONS}, got {reduction!r}")
        self.head, self.reduction = head, reduction

    def reduce(self, losses: Tensor) -> Tensor:
        """Losses ``(b,)`` to what ``reduction`` says."""
        return losses if self.reduction == "none" else losses.mean() if self.reduction == "mean" else losses.sum()


class MarginCrossEntropyLoss(_Loss):
    r"""Cross entropy of logits of which the right class has lost an offset: ``T * CE((z - offset * e_y) / T, y)``.

    A class must be ahead by more than the offset to count as right; the temperature T says how much more is worth
    having. See Note [Margins in units of distance].

    Source: Prach, Lampert, arXiv 2208.03160, section 4.

    Args:
        offset: margin that is asked for, in units of the logits.
        temperature: of the softmax, in the same units.
        head: a linear head; the logits are divided by the largest distance of two of its rows first.
        reduction: "none", "mean" or "sum", over the batch.

    Shape:
        Logits ``(b, classes)`` and targets ``(b,)`` to ``()``, or ``(b,)`` without a reduction.

    Raises:
        ValueError: for a temperature that is not positive, or another reduction.

    Example:
        >>> loss = MarginCrossEntropyLoss(offset=0.5, temperature=0.1)
        >>> loss(torch.eye(3), torch.arange(3)).shape
        torch.Size([])
    """

    def __init__(
        self,
        offset: float = 0.0,
        temperature: float = 1.0,
        *,
        head: nn.Module | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(head, reduction)
        if not temperature > 0:
            raise ValueError(f"expected a positive temperature, got {temperature!r}")
        self.offset, self.temperature = offset, temperature

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.reduce(self.losses(logits, targets))

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """One loss ``(b,)`` for each sample."""
        if self.head is not None:
            logits = logits / row_distances(rows_of(self.head)).amax()
        shifted = logits - self.offset * F.one_hot(targets, logits.shape[1])
        return self.temperature * F.cross_entropy(shifted / self.temperature, targets, reduction="none")

    def extra_repr(self) -> str:
        return f"offset={self.offset}, temperature={self.temperature}"


class LogitAnnealingLoss(MarginCrossEntropyLoss):
    r"""The margin cross entropy times ``(1 - p_y)^power``: a sample whose margin is large enough is left in peace.

    p_y is the probability of the right class in the softmax with offset and temperature. With the usual cross entropy
    a few samples of large margin go on pulling; here the network, whose capacity is bounded, spends it on the others.

    Source: Lai et al., arXiv 2505.15174, equation 9. Theirs on CIFAR-10: offset 2, temperature 0.75, power 5.

    Args:
        offset: margin that is asked for, in units of the logits.
        temperature: of the softmax, in the same units.
        power: how fast the loss fades; 0 gives the margin cross entropy.
        head: as in :class:`MarginCrossEntropyLoss`.
        reduction: "none", "mean" or "sum", over the batch.

    Shape:
        As :class:`MarginCrossEntropyLoss`.

    Raises:
        ValueError: for a negative power, a temperature that is not positive, or another reduction.
    """

    def __init__(
        self,
        offset: float = 0.0,
        temperature: float = 1.0,
        power: float = 5.0,
        *,
        head: nn.Module | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(offset, temperature, head=head, reduction=reduction)
        if not power >= 0:
            raise ValueError(f"expected a power of at least 0, got {power!r}")
        self.power = power

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """One loss ``(b,)`` for each sample."""
        losses = super().losses(logits, targets)
        # 1 - p by expm1, or a p near 1 leaves nothing of it
        missed = -torch.expm1(-losses / self.temperature)
        return losses * missed.clamp(min=torch.finfo(missed.dtype).tiny).pow(self.power)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, power={self.power}"


class CertificateRegularizer(_Loss):
    r"""Minus ``strength`` times the certified radius, 0 where the prediction is wrong: to be added to a loss.

    Source: Singla, Singla, Feizi, arXiv 2108.04062, section 5.

    Args:
        strength: of the regularisation; the loss falls by so much for each unit of radius.
        head: the linear head, an ``nn.Linear`` or :class:`UnitNormLinear`.
        lipschitz: of all that comes before it.
        reduction: "none", "mean" or "sum", over the batch.

    Shape:
        Logits ``(b, classes)`` and targets ``(b,)`` to ``()``, or ``(b,)`` without a reduction.

    Raises:
        ValueError: for another reduction.
    """

    def __init__(self, strength: float, head: nn.Module, lipschitz: float = 1.0, *, reduction: str = "mean") -> None:
        super().__init__(head, reduction)
        self.strength, self.lipschitz = strength, lipschitz

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        rows = rows_of(cast(nn.Module, self.head))
        return self.reduce(-self.strength * certified_radius(logits, rows, self.lipschitz, targets))

    def extra_repr(self) -> str:
        return f"strength={self.strength}, lipschitz={self.lipschitz}"
