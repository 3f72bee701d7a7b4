"""What a recurrent layer over time asks of its options."""

import warnings

from torch import Tensor

from ...linalg.check import check_dense


def check_options(num_layers: int, dropout: float, **flags: bool) -> None:
    """Refuses what ``nn.RNN`` refuses, with the same types of errors, and warns of what it warns of."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(flag).__name__}")
    if not isinstance(num_layers, int) or isinstance(num_layers, bool):
        raise TypeError(f"num_layers should be of type int, got: {type(num_layers).__name__}")
    if num_layers < 1:
        raise ValueError(f"num_layers must be greater than zero, got {num_layers}")
    if not isinstance(dropout, (int, float)) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an element being zeroed, "
            f"got {dropout!r}"
        )
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects num_layers "
            f"greater than 1, but got dropout={dropout} and num_layers={num_layers}",
            stacklevel=3,
        )


def is_batched(layer: str, input: Tensor, hx: Tensor | None) -> bool:
    """Whether a padded input ``(t, batch, f)`` or ``(t, f)`` of a recurrent layer has a batch.

    Raises:
        ValueError, RuntimeError: for what is neither, and for an initial state that does not go with it.
    """
    check_dense(f"input of {layer}", input)
    if input.dim() not in (2, 3):
        raise ValueError(f"{layer}: Expected input to be 2D or 3D, got {input.dim()}D instead")
    batched = input.dim() == 3
    if hx is not None and hx.dim() != input.dim():
        kind = "batched 3-D" if batched else "unbatched 2-D"
        raise RuntimeError(f"For {kind} input, hx should also be {input.dim()}-D but got {hx.dim()}-D tensor")
    return batched
