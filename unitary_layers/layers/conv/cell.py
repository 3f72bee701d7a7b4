"""A recurrent cell over images whose recurrent map is an orthogonal convolution."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ...projunn.rule import UpdateRule
from ..base.forward import in_use, watch_own
from ..base.inputs import Sides, as_sides, as_size, check_input
from ..base.methods import UnitaryMethods
from ..base.symbolic import OneOperation, has_hooks
from .local import LocalSupport
from .orthogonal import OrthogonalConv2d

STEPS = 64  # of a loop around a cell, which does not know how long it is


def isru(z: Tensor) -> Tensor:
    """``z / sqrt(1 + z^2)``, which keeps small values and bounds large ones by 1 (inverse square root unit)."""
    return z / torch.hypot(z, torch.ones_like(z))


class OrthogonalConvRNNCell(UnitaryMethods, OneOperation):
    r"""Steps of a recurrence over images whose recurrent map is an orthogonal convolution.

    .. math:: Z' = \phi(U * Z + V * I + b), \qquad \phi(z) = z / \sqrt{1 + z^2}

    with the state Z, the input I, an orthogonal convolution U and an ordinary one V. Small states keep their norm from
    step to step, so that a signal travels over the whole image without a decay; large ones are bounded by ``phi``. U
    is an :class:`OrthogonalConv2d`, ``conv_hh``, and V an ``nn.Conv2d``, ``conv_ih``. The arguments are in the order of
    ``nn.RNNCell``.

    Source: M. O. Magnasco, "Input-driven circuit reconfiguration in critical recurrent neural networks",
    arXiv 2405.15036, whose states are complex and whose input is added as it is. Here they are real.

    Args:
        in_channels: channels of the input.
        hidden_channels: channels of the state.
        kernel_size: taps of a side of U; None for full support, a kernel as large as the image.
        bias: whether V adds a bias.
        nonlinearity: "isru", the ``phi`` above, or a module that keeps the shape, of which the cell has a copy.
        device: of the parameters.
        dtype: real floating point type.
        input_size: height and width of the images, for full support.
        input_kernel_size: odd number of taps of a side of V, which pads with zeros; None to add the input as it is.
        update: how the weights of U move.
        init: how they start, as for :class:`OrthogonalConv2d`.
        gradient: "dense", or for full support "factored"; each use before a step is then sampled for itself.

    Inputs:
        input: ``(b, in_channels, h, w)`` or without b.
        hx: ``(b, hidden_channels, h, w)`` or without b; zeros if not given.
        steps: how many steps the cell takes with this input, which it convolves once.

    Outputs:
        The state after the last step, in the shape of ``hx``.

    Raises:
        ValueError: for an option out of range, and in ``forward`` for a state whose shape does not belong to the input.

    Example:
        >>> cell = OrthogonalConvRNNCell(2, 8, 3)
        >>> state = cell(torch.randn(4, 2, 10, 12), steps=5)
        >>> state.shape
        torch.Size([4, 8, 10, 12])
        >>> state.square().sum().backward()
        >>> cell.projunn_step()
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: Sides | None = None,
        bias: bool = True,
        nonlinearity: str | nn.Module = "isru",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        input_size: Sides | None = None,
        input_kernel_size: Sides | None = 3,
        update: UpdateRule = UpdateRule(),  # noqa: B008 (a frozen value)
        init: str | Callable[..., Tensor] | None = None,
        gradient: str = "dense",
    ) -> None:
        super().__init__()
        self.in_channels = as_size("in_channels", in_channels)
        self.hidden_channels = n = as_size("hidden_channels", hidden_channels)
        if nonlinearity != "isru" and not isinstance(nonlinearity, nn.Module):
            raise ValueError(f"expected nonlinearity to be 'isru' or a module (not its class), got {nonlinearity!r}")
        if input_kernel_size is None and self.in_channels != n:
            raise ValueError(
                f"expected as many channels of the input as of the state with input_kernel_size=None, which adds it as "
                f"it is; got {self.in_channels} and {n}"
            )
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {"update": update, "init": init, "gradient": gradient, "input_size": input_size}
        self.conv_hh = OrthogonalConv2d(n, n, kernel_size, bias=False, **dd, **options)
        self.conv_hh.uses = STEPS
        self.conv_ih: nn.Module = nn.Identity()
        if input_kernel_size is not None:
            rows, columns = as_sides("input_kernel_size", input_kernel_size, 2)
            if rows % 2 == 0 or columns % 2 == 0:
                raise ValueError(f"expected an odd input_kernel_size, got {input_kernel_size}")
            padding = (rows // 2, columns // 2)
            self.conv_ih = nn.Conv2d(self.in_channels, n, (rows, columns), 1, padding, bias=bias, **dd)
        self.nonlinearity = nonlinearity if isinstance(nonlinearity, str) else type(nonlinearity).__name__
        self.activation = copy.deepcopy(nonlinearity) if isinstance(nonlinearity, nn.Module) else None

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        for child in self.modules():
            if child is not self and callable(reset := getattr(child, "reset_parameters", None)):
                reset()

    def forward(self, input: Tensor, hx: Tensor | None = None, steps: int = 1) -> Tensor:
        if isinstance(input, Proxy):
            return self.recorded(input, hx, steps)
        steps = as_size("steps", steps)
        check_input("OrthogonalConvRNNCell", input, self.conv_hh.weight)
        if input.ndim not in (3, 4):
            raise ValueError(f"OrthogonalConvRNNCell: expected 3D (unbatched) or 4D input, got {input.ndim}D")
        if input.size(-3) != self.in_channels:
            raise ValueError(f"OrthogonalConvRNNCell: expected {self.in_channels} channels, got {input.size(-3)}")
        expected = (*input.shape[:-3], self.hidden_channels, *input.shape[-2:])
        if hx is not None:
            check_input("OrthogonalConvRNNCell", hx, self.conv_hh.weight)
            if tuple(hx.shape) != expected:
                raise ValueError(f"OrthogonalConvRNNCell: expected hx of shape {expected}, got {tuple(hx.shape)}")
        if torch.is_grad_enabled() and steps > 1:
            self.conv_hh.uses = steps
        drive, z = self.conv_ih(input), input.new_zeros(expected) if hx is None else hx
        drive, z = (t if input.ndim == 4 else t.unsqueeze(0) for t in (drive, z))
        recur = self._recurrence(steps)
        for _ in range(steps):
            z = recur(z) + drive
            z = isru(z) if self.activation is None else self.activation(z)
        return z if input.ndim == 4 else z.squeeze(0)

    def _recurrence(self, steps: int) -> Callable[[Tensor], Tensor]:
        """The recurrent map, for several steps with a local kernel that is made once."""
        conv, support = self.conv_hh, getattr(self.conv_hh, "support", None)
        if steps == 1 or has_hooks(conv) or not isinstance(support, LocalSupport):
            return conv
        watch_own(conv)
        kernel = support.kernel(in_use(conv, "weight"), in_use(conv, "shifts"))
        return lambda z: support.apply(z, kernel)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.hidden_channels}"]
        return ", ".join(parts if self.nonlinearity == "isru" else [*parts, f"nonlinearity={self.nonlinearity!r}"])
