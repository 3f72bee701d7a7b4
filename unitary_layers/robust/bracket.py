"""The other side of a certificate: a distance at which the prediction does change, found along the gradient.

Source: F. Brau, G. Rossolini, A. Biondi, G. Buttazzo, "On the minimal adversarial perturbation for deep neural networks
with provable estimation error", IEEE TPAMI 2022, arXiv 2201.01235: the boundary as the root of a function of one
variable, along the gradient of the least margin.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

GROWTH = 2.0  # of a step that has not yet reached another prediction

# Note [An upper bound by root finding]
# Along the line x - t g / |g|, g the gradient of the margin m = z_y - z_j to the runner-up j, a change of the
# prediction is looked for by doubling t from m / |g|, where a linear m has its root. Then the interval is halved. What
# is returned is the end of the interval at which the prediction has been seen to be another one, so it is an upper
# bound of the distance to the boundary, whatever the network does in between. Where doubling finds nothing, it is
# infinity. Below it, by the certificate, is the lower bound; the true distance lies between.


def boundary_distance(
    model: Callable[[Tensor], Tensor], inputs: Tensor, steps: int = 10, doublings: int = 10
) -> Tensor:
    """An upper bound of the distance to the nearest input with another prediction; see Note [An upper bound by root
    finding].

    Args:
        model: from inputs to logits ``(b, classes)``, each from its own input, as in evaluation.
        inputs: ``(b, ...)``.
        steps: halvings of the interval; each costs a forward pass.
        doublings: of the first step, until the prediction changes; at most so many forward passes.

    Returns:
        Distances ``(b,)`` in the Euclidean norm, of points that need be no images: their pixels may leave [0, 1].
        Infinity where no change was found.

    Raises:
        ValueError: for counts below 0.
    """
    if steps < 0 or doublings < 0:
        raise ValueError(f"expected steps and doublings of at least 0, got {steps} and {doublings}")
    predicted, margin, gradient = _margin_gradient(model, inputs)
    norm = gradient.flatten(1).norm(dim=1)
    direction = gradient / norm.where(norm > 0, 1.0).view(-1, *[1] * (inputs.ndim - 1))

    def has_changed(lengths: Tensor) -> Tensor:
        points = inputs - lengths.view(-1, *[1] * (inputs.ndim - 1)) * direction
        return model(points).argmax(dim=1) != predicted

    with torch.no_grad():
        first = (margin / norm).where((norm > 0) & (margin > 0), 0.0)
        low, high = torch.zeros_like(first), first.clamp(min=torch.finfo(first.dtype).tiny)
        found = has_changed(high)
        for _ in range(doublings):
            low, high = high.where(~found, low), high.where(found, GROWTH * high)
            found = found | has_changed(high)
        for _ in range(steps):
            middle = (low + high) / 2
            changed = has_changed(middle)
            low, high = low.where(changed, middle), middle.where(changed, high)
        return high.where(found & (norm > 0), math.inf)


def _margin_gradient(model: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions ``(b,)``, margins to the runner-up ``(b,)`` and their gradients by the inputs ``(b, ...)``."""
    with torch.enable_grad():
        points = inputs.detach().requires_grad_(True)
        top = model(points).topk(2, dim=1)
        margin = top.values[:, 0] - top.values[:, 1]
        (gradient,) = torch.autograd.grad(margin.sum(), points)
    return top.indices[:, 0], margin.detach(), gradient
