"""The spectral direction: the tangent part of a gradient, and a rotation of all of its planes by the same angle.

Sources: J. Su, "Muon + orthogonality" (2025), and J. Bernstein, "Modular manifolds" (2025): steepest descent on O(n) in
the spectral norm; K. Ahn, B. Xu et al., "Dion: distributed orthonormalized updates", arXiv 2504.05295 (low rank, and
momentum with error feedback). Here both are carried to the manifold together.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..linalg import LowRank
from ..linalg.lowrank import k_major
from ..linalg.thin import thin_times, times_thin
from .gradient import GradientOperator, WrappedGradient
from .rotation import plane_of

# Note [The spectral direction]
# On the unitary group the steepest descent in the spectral norm is W <- W exp(-theta msign(S)), where S = skew(W^H M)
# is the tangent part of the momentum M and msign its polar factor: the singular values of S become 1, and all planes
# turn by the same angle theta. The step has a length and no scale: neither the loss nor a GradScaler enters it. Here S
# is never formed. S v = (W^H M v - M^H W v) / 2 is an operator that costs two thin products more than M, any sampler
# takes a sample B V^H of it, and msign is taken of the small matrix of 2 k x 2 k that the rotation needs anyway.
# Momentum with error feedback: M <- M + G before the sample, M <- M - (1 - mu) W B V^H after it, so that what was
# sampled decays as under a momentum of mu, and what was not waits for its turn. Measured on Fashion-MNIST (two hidden
# weights, n = 256, 600 steps, mean training loss, two seeds): k = 16 0.380, 0.388; without memory 0.418, 0.429; with a
# start from the step before in the place of a Gaussian one 0.384, 0.391, and at k = 1 0.466, 0.494 against 0.430,
# 0.462.
# The part of M that is normal to the group is never sampled and stays. It is a sum of all gradients, and as W turns it
# becomes tangent again, towards the W that would have served all batches so far, as in dual averaging (Nesterov 2009).
# Without it learning is slower: loss after 600 and 2,000 steps 0.376 and 0.261 with it, 0.398 and 0.300 where M is
# projected to the tangent space after each step.
# What one sets is the Frobenius length of a step, |theta| sqrt(r) for r turning directions: over ranks 1 to 32 the best
# angle varied by five, the best length by two.

# Note [The tangent part of a rectangle]
# A wide W turns from the right, by S = skew(W^H M). In the frame of the rows of W and of what is outside them
#     S = [[X, Y], [-Y^H, 0]]    and    W S = (M - W M^H W) / 2 = [X, Y],
# and it is M_t = W S, of m rows, that is sampled. Its own skew(W^H M_t) has only half of Y. So of a sample A V^H of M_t
# it is skew(W^H A B^H) that stands for S, with B = (2 - W^H W) V, which doubles what is outside, and A B^H is what the
# step uses of the momentum. A tall W turns as the adjoint of a wide one. A square W could be sampled so too, but then
# the rotation had to multiply A by W^H, which S has done already.

# Note [What was never sampled]
# What no sample takes out of M would stay for ever. Where gradients become small in the course of a training, or the
# landscape changes, the first ones then still decide where to go. So M decays as a whole as well, by a factor of
# 1 - k / (8 n) a step. A direction gets its turn about every n / k steps, and so waits through some eight turns before
# it is forgotten. Without and with it, a cosine, no slope test, one seed: loss on the adding problem of 30 0.0054,
# 0.0019; JapaneseVowels 0.0056, 0.0041 (k = n / 4, both). A factor of 0.97 at any rank is less good: MLP (k = n / 16)
# 0.391, with 1 - k / (8 n) 0.380.

# Note [Planes that are noise]
# The sample's left and right factors span nearly the same plane once it is tangent, so that z = skew(s) has singular
# values that are zero but for rounding. Their planes must not turn. z is made of products in the precision of the
# weight, so what is below c r eps times its largest singular value counts as zero. The singular values of a real skew
# matrix come in pairs; a pair counts as one, or the part that is kept would not be skew.

NOISE = 4
TURNS = 8

# Note [One angle for ever]
# Steps of a fixed length multiply by the same cosine and sine again and again, and their rounding does not average out.
# Computed as p = exp(-theta J), which has a diagonal near 1, it made float64 weights drift by 1 eps each step. So p - I
# is computed: it is of size theta and has the rounding of that.


@dataclass(frozen=True)
class SkewGradient(WrappedGradient):
    """The direction in which a gradient turns a square unitary W: ``S = (W^H M - M^H W) / 2``, skew-Hermitian.

    Attributes:
        inner: M ``(..., n, n)``.
        weight: W ``(..., n, n)``, unitary.
    """

    inner: GradientOperator
    weight: Tensor

    def matmul(self, v: Tensor) -> Tensor:
        turned = self.inner.rmatmul(k_major(times_thin(self.weight, v)))
        return (thin_times(k_major(self.inner.matmul(v)), self.weight).mH - turned) / 2

    def rmatmul(self, u: Tensor) -> Tensor:
        return -self.matmul(u)

    def dense(self) -> Tensor:
        matrix = self.weight.mH @ self.inner.dense()
        return (matrix - matrix.mH) / 2

    def is_finite(self) -> bool:
        return self.inner.is_finite()


@dataclass(frozen=True)
class TangentGradient(WrappedGradient):
    """The part of a gradient tangent to the matrices of the shape of W: ``M_t = (M - W M^H W) / 2``.

    See Note [The tangent part of a rectangle].

    Attributes:
        inner: M ``(..., m, n)``.
        weight: W ``(..., m, n)``, with orthonormal rows or columns.
    """

    inner: GradientOperator
    weight: Tensor

    def matmul(self, v: Tensor) -> Tensor:
        turned = self.inner.rmatmul(k_major(times_thin(self.weight, v)))
        return (self.inner.matmul(v) - times_thin(self.weight, k_major(turned))) / 2

    def rmatmul(self, u: Tensor) -> Tensor:
        turned = self.inner.matmul(thin_times(u, self.weight).mH)
        return (self.inner.rmatmul(u) - thin_times(k_major(turned), self.weight).mH) / 2

    def dense(self) -> Tensor:
        matrix = self.inner.dense()
        return (matrix - self.weight @ matrix.mH @ self.weight) / 2

    def is_finite(self) -> bool:
        return self.inner.is_finite()


def turning(gradient: GradientOperator, weight: Tensor) -> GradientOperator:
    """What is sampled of a gradient ``(..., m, n)``: the :class:`SkewGradient`, of a rectangle the tangent one."""
    m, n = weight.shape[-2:]
    return SkewGradient(gradient, weight) if m == n else TangentGradient(gradient, weight)


class Turn(NamedTuple):
    """A step of a unitary weight, not yet taken.

    Attributes:
        change: what is to be added to it, ``(..., m, n)``.
        course: the velocity with which the step arrives, ``(..., m, n)``; of a square one the singular values are 0
            and 1.
        used: the part of the momentum that it follows, ``(..., m, n)``.
    """

    change: LowRank
    course: LowRank
    used: LowRank

    @property
    def mH(self) -> "Turn":
        """The step of the adjoint."""
        return Turn(*(part.mH for part in self))


def spectral_rotation(weight: Tensor, sample: LowRank, variant: str, length: Tensor | float) -> Turn:
    """The step of a unitary weight that turns all planes of a sample by one angle, against it.

    Args:
        weight: unitary ``(..., m, n)``, with orthonormal rows or columns.
        sample: k-major factors ``(..., m, k)``, ``(..., n, k)`` of a sample of what :func:`turning` says; their scale
            does not matter.
        variant: "T" turns by ``theta = length / sqrt(r)``, r the number of directions that turn; "D", the nearest
            unitary matrix to ``W (I - theta J)``, by ``atan(theta)``.
        length: Frobenius length of the step, in radians; a number, or one a matrix ``(...)``.

    Returns:
        The step by k-major factors of at most 2 k columns.

    Raises:
        ValueError: for a sample with a NaN or an infinity.

    Source: see Note [The spectral direction].
    """
    m, n = weight.shape[-2:]
    if m > n:  # see Note [The larger side turns]
        return spectral_rotation(weight.mH, sample.mH, variant, length).mH
    if m < n:  # see Note [The tangent part of a rectangle]
        inside = thin_times(times_thin(weight, sample.right), weight).mH
        used = LowRank(sample.left, k_major(2 * sample.right - inside))
        sample = LowRank(thin_times(used.left, weight).mH, used.right)
    q, r, s = plane_of(sample)
    j, projector, rank = msign((s - s.mH) / 2, NOISE * s.size(-1) * torch.finfo(weight.dtype).eps)
    theta = (length / rank.clamp_min(1).sqrt()).clamp_max(torch.finfo(rank.dtype).max)  # an infinite one has no sine
    theta = (theta.atan() if variant == "D" else theta)[..., None, None]
    turned = times_thin(weight, q)
    change = turned @ _exponential_less_unit(j, projector, theta).to(weight.dtype)
    if m == n:
        used = LowRank(k_major(turned @ r.to(weight.dtype)), sample.right)
    return Turn(LowRank(change, q), LowRank((turned + change) @ -j.to(weight.dtype), q), used)


def _exponential_less_unit(j: Tensor, projector: Tensor, theta: Tensor) -> Tensor:
    """``exp(-theta J) - I`` of a skew J with ``J^2 = -projector``; see Note [One angle for ever]."""
    d = -2 * (theta / 2).sin().square() * projector - theta.sin() * j
    # A gap of g between what is kept and what is noise leaves an error of 1e-16 / g, which one round of Newton-Schulz
    # squares: p - p (p^H p - I) / 2.
    error = (d + d.mH + d.mH @ d) / 2
    return d - error - d @ error


def msign(skew: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """The polar factor of a skew-Hermitian matrix on its range; see Note [Planes that are noise].

    Args:
        skew: ``(..., r, r)``.
        tolerance: singular values up to this fraction of the largest one count as zero.

    Returns:
        J ``(..., r, r)``, skew with singular values 0 and 1; the projector ``J^H J`` onto its range; the rank of J
        ``(...)``, in the real dtype of the matrix.
    """
    largest = skew.abs().amax(dim=(-2, -1), keepdim=True)
    u, sigma, vh = torch.linalg.svd(skew / torch.where(largest == 0, 1, largest))
    if not skew.is_complex():  # both of a pair, or none; of an odd number the last is zero
        pairs = sigma[..., 1::2].repeat_interleave(2, dim=-1)
        sigma = torch.cat([pairs, torch.zeros_like(sigma[..., : sigma.size(-1) % 2])], dim=-1)
    kept = (sigma > tolerance * sigma[..., :1]).to(sigma.dtype)
    vh_kept = kept.unsqueeze(-1) * vh
    j = u @ vh_kept
    return (j - j.mH) / 2, vh.mH @ vh_kept, kept.sum(-1)


def automatic_rank(n: int, share: int = 16) -> int:
    """The rank of ``UpdateRule(rank="auto")``: n / share, n the smaller side, but from 8 to 32, and at most n."""
    # Measured at n = 2048, 512 rows, one thread, time of a training step over that of nn.Linear with AdamW: k = 16
    # 1.26, 32 1.38, 64 1.84. Loss of the MLP of Note [The spectral direction] (n = 256, 400 steps): k = 1 0.554,
    # 4 0.483, 8 0.456, 16 0.439, 32 0.425; of 16 layers of n = 64 on digits: k = 1 0.698, 4 0.303, 8 0.252, 16 0.223.
    return min(n, max(8, min(32, math.ceil(n / share))))


def lasting(rank: int, n: int) -> float:
    """How much of the momentum is left of a step before the next gradient is added; see Note [What was never sampled].

    Args:
        rank: of a sample, at most n.
        n: the smaller side of the weight.
    """
    return 1 - rank / (TURNS * n)
