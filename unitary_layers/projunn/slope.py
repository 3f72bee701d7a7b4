"""The slope test: steps that overshoot become shorter, until they do no longer.

Source: G. C. Pflug, "Non-asymptotic confidence bounds for stochastic approximation algorithms with constant step size",
Monatshefte fuer Mathematik 110 (1990): while successive steps agree the rate is too small, when they oppose each other
it is too large.
"""

import math

import torch
from torch import Tensor

# Note [The slope at the end of a step]
# Steps of a fixed length do not vanish with the gradient: near a minimum they go back and forth. What tells is the next
# gradient G, along the course C with which the last step arrived: s = Re <G, C> is the slope of the loss there. On
# average it is negative where the step might have gone on, and positive where it went too far. Of s and its square two
# running averages are kept; t = mean / sqrt(mean of squares) is between -1 and 1 and knows no scale; and the length is
# multiplied by f, with log f <- log f - RATE (t |t| - TOLERATED). All rates constant, loss without the test and with
# it: MLP on Fashion-MNIST 0.458, 0.423; 16 layers on digits 0.889, 0.187; digits pixel by pixel 0.343, 0.179 (frozen
# 0.272). (These are a prototype's, with a momentum of 0.95, no SHORTEST and TOLERATED = 0.)
# s is a sum over all planes, and a few of them are steep. As all turn by one angle these go back and forth long before
# the others arrive: on the adding problem s said "too far" (t up to 0.7) while most planes still went down. So the test
# tolerates t |t| up to TOLERATED. With 0, 0.2, 0.3 and 0.4, one seed: adding problem, a cosine, 0.0133, 0.0035, 0.0017,
# 0.0021; MLP at a constant rate 0.357, 0.370, 0.380, 0.406. With 0.2 and 0.3: copying at a constant rate
# 1.9e-4, 2.2e-3.
# f stays at 1 or below: a schedule that comes down makes all slopes negative, and is not to be undone; and on a
# plateau, where they are as well, steps ten times as long end in a jump (copying memory). Nor does s tell who would
# gain from longer steps: JapaneseVowels does, copying memory does not, and both begin with t |t| near -0.6 and are
# above 0.2 after a third of the steps. With f up to 3 while t |t| < -0.2, a cosine, seeds 0 and 1: vowels 0.0050 to
# 0.0038, 0.0033 to 0.0028; copying 0.0268 to 0.0320, 0.0296 to 0.0299; digits 0.190 to 0.186, 0.201 to 0.217.
# After the end of a training f is low, and a new task on the same optimiser finds it so: from SHORTEST it is back after
# some 60 steps.

RATE = 0.04
MEMORY = 0.95
TOLERATED = 0.2  # a trend of 0.45
SHORTEST, LONGEST = 0.05, 1.0
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
    log_factor = (log_factor - RATE * (trend * trend.abs() - TOLERATED)).clamp(math.log(SHORTEST), math.log(LONGEST))
    return torch.where(trend.isfinite().unsqueeze(-1), torch.stack([count, mean, root, log_factor], dim=-1), state)


def factor_of(state: Tensor) -> Tensor:
    """f ``(...)``, by which the length of a step is multiplied."""
    return state[..., 3].exp()
