"""The slope test: steps that overshoot become shorter, and steps that fall short longer.

Source: G. C. Pflug, "Non-asymptotic confidence bounds for stochastic approximation algorithms with constant step size",
Monatshefte fuer Mathematik 110 (1990): while successive steps agree the rate is too small, when they oppose each other
it is too large.
"""

import math

import torch
from torch import Tensor

# Note [The slope at the end of a step]
# Steps of a fixed length do not vanish with the gradient: near a minimum they go back and forth. What tells is the next
# gradient G, along the unit tangent C at the end of the last step: s = Re <G, C> is the slope of the loss there. On
# average it is negative where the step might have gone on, and positive where it went too far. Of s and its square two
# running averages are kept; t = mean / sqrt(mean of squares) is between -1 and 1 and knows no scale; and the length is
# multiplied by f, with log f <- log f - RATE t |t|. Measured (loss over that of a cosine schedule for the length; all
# other rates constant): MLP of DEPTH 2 on Fashion-MNIST 0.395 with a constant length and the test, 0.430 without,
# 0.390; 16 layers on digits 0.181, 0.304, 0.196; digits pixel by pixel 0.195, 0.322, 0.145. And it makes the length
# forgiving: on the MLP lengths of 0.03, 0.3 and 2 end at 0.472, 0.444 and 0.455, without it at 0.500, 0.439 and 0.516.

RATE = 0.04
MEMORY = 0.95
SHORTEST, LONGEST = 0.01, 10.0
STATE = 4  # numbers a matrix: steps, mean slope, root mean square of the slope, log f


def after_slope(state: Tensor, slope: Tensor) -> Tensor:
    """The state ``(..., 4)`` of the test after a slope ``(...)``; zeros at first. In double precision.

    A slope that has overflowed says nothing and changes nothing.
    """
    count, mean, root, log_factor = state.unbind(-1)
    count = count + 1
    mean = MEMORY * mean + (1 - MEMORY) * slope
    root = (MEMORY * root.square() + (1 - MEMORY) * slope.square()).sqrt()
    seen = 1 - MEMORY**count
    trend = (mean / seen) / torch.where(root == 0, 1, root / seen.sqrt())
    log_factor = (log_factor - RATE * trend * trend.abs()).clamp(math.log(SHORTEST), math.log(LONGEST))
    return torch.where(trend.isfinite().unsqueeze(-1), torch.stack([count, mean, root, log_factor], dim=-1), state)


def factor_of(state: Tensor) -> Tensor:
    """f ``(...)``, by which the length of a step is multiplied."""
    return state[..., 3].exp()
