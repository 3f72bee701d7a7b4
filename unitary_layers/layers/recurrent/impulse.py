"""The last state of a linear recurrence, from what an impulse of each input feature leaves behind."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...linalg.transforms import is_transformed
from ...training.precision import is_autocast
from ..base.inputs import HALF
from .fused import kind_of
from .packed import by_age

# Note [Responses to impulses]
# A linear recurrence ends with h_T = sum_i W^i U x_{T-i}. The responses W^i U to an impulse of each input feature are
# the same for all sequences: a recurrence with as many rows a step as there are features, in the place of one with as
# many as there are sequences, and one product of all inputs with all responses. The biases are one more feature, which
# is always 1. A given h_0 would be as many more as there are sequences, so with one the loop stays. The responses are a
# scan like any other, and so are gradients: that of W has steps x features rows, and none for a sequence.
# The responses could also come by doubling, [W^j K, K] from K and W^j, with log2 T squares of W. Their adjoints could
# not, for they have inputs at all times. Forward, T = 784 and two rows a step, doubling takes 0.9, 3.3 and 20 ms of
# processor time at widths 128, 256 and 512, where the loop takes 7.9, 11 and 19, and pairs of steps 4, 9 and 30. At
# width 512 that gains nothing, and below a quarter of the 12 and 36 ms that forward and backward take with the products
# of 100 sequences: too little for a second kind of scan.


def impulses_pay(
    activations: Iterable[nn.Module], x: Tensor, lengths: Tensor | int, batch: int, n: int, bias: bool
) -> bool:
    """Whether a layer is linear and responses to impulses take fewer operations than the recurrence of all sequences.

    A transform takes the plain formula, a compiler knows no lengths of a packed sequence, and in half precision and
    under autocast the steps round as they always do.

    Args:
        activations: of all directions.
        x: input ``(rows, features)``; of a padded batch there are ``t * batch`` rows.
        lengths: as for :func:`scan`.
        batch: sequences.
        n: features of the state.
        bias: whether there is one.
    """
    if is_transformed() or (torch.compiler.is_compiling() and isinstance(lengths, Tensor)):
        return False
    if x.dtype in HALF or is_autocast(x.device.type):
        return False
    if any(kind_of(activation, x) != "identity" for activation in activations):
        return False
    features = x.size(1) + bias
    return _steps(lengths) * features * (n + batch) < x.size(0) * (n + features)


def last_states(
    x: Tensor,
    lengths: Tensor | int,
    batch: int,
    weight_ih: Tensor,
    bias: Tensor | None,
    run: Callable[..., tuple[Tensor, Tensor]],
    *,
    reverse: bool,
) -> Tensor:
    """The states ``(batch, n)`` of ``h_t = W_ih x_t + b + W h_{t-1}`` after the last step, from zero.

    Args:
        x: inputs ``(rows, features)``, in the order of :func:`scan`.
        lengths: as for :func:`scan`.
        batch: sequences.
        weight_ih: ``(n, features)``.
        bias: b ``(n,)``, if there is one.
        run: :func:`scan` with the recurrent matrix W and the identity.
        reverse: run from the last time step to the first.
    """
    if bias is not None:
        x, weight_ih = F.pad(x, (0, 1), value=1.0), torch.cat([weight_ih, bias.unsqueeze(1)], dim=1)
    n, features = weight_ih.shape
    impulses = torch.cat([weight_ih.mT, x.new_zeros((_steps(lengths) - 1) * features, n)])
    responses, _ = run(impulses, _steps(lengths), x.new_zeros(features, n))
    return by_age(x, lengths, batch, reverse) @ responses


def _steps(lengths: Tensor | int) -> int:
    return len(lengths) if isinstance(lengths, Tensor) else lengths
