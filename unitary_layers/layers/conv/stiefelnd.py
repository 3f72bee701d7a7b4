"""What convolutions with orthonormal kernels share: options, the parameter, its start and its Lipschitz constant."""

import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...projunn.rule import UpdateRule
from ...training.weight import as_complex
from ..base.forward import in_use
from ..base.inputs import Sides, as_half, as_sides, as_size, check_channels, check_input
from ..base.module import UnitaryModule
from .reads import most_reads

# Note [The step of a kernel]
# Orthonormal kernels want longer steps than linear layers, and of a higher rank. Measured on the task "kernels" of the
# learning benchmark (six kernels of 27 to 576 columns, n = 27 to 64, 90 steps, seed 0), mean loss of the last 15 steps,
# test %. With AdamW at 1e-3 for what is not a kernel, rank n / 4: length 0.5 1.239, 57.1; 1 1.203, 59.0; 2 1.211, 57.8.
# With AdamW at 1e-2, length 1: rank n / 16 1.114, 56.2; n / 4 1.042, 57.9; n / 2 0.898, 61.5. Always at least 8.

PADDINGS = ("same", "valid")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class StiefelNd(UnitaryModule):
    """What :class:`StiefelConv2d`, :class:`StiefelConvTranspose2d` and their kin share, with the options of both."""

    sides: ClassVar[int]
    is_transposed: ClassVar[bool]
    weight: Tensor
    bias: Tensor | None
    extra_inits = ("dirac",)
    step_length = 1.0  # see Note [The step of a kernel]
    rank_share = 2
    __constants__: ClassVar[list[str]] = [  # what forward reads
        *("kernel_size", "stride", "padding", "pads", "output_padding", "dilation", "groups", "padding_mode"),
        *("is_complex", "scale"),
    ]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sides,
        stride: Sides,
        padding: str | Sides,
        output_padding: Sides,
        dilation: Sides,
        groups: int,
        bias: bool,
        padding_mode: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        update: UpdateRule,
        init: str | Callable[..., Tensor],
        gradient: str,
        normalize: bool,
    ) -> None:
        super().__init__(update, init, dtype, gradient)
        if gradient != "dense":
            raise ValueError(f'expected gradient="dense" for an orthonormal kernel, got {gradient!r}')
        self.in_channels = as_size("in_channels", in_channels)
        self.out_channels = as_size("out_channels", out_channels)
        self.groups = as_size("groups", groups)
        check_channels(self.in_channels, self.out_channels, self.groups)
        self.kernel_size = as_sides("kernel_size", kernel_size, self.sides)
        self.stride = as_sides("stride", stride, self.sides)
        self.dilation = as_sides("dilation", dilation, self.sides)
        self.output_padding = as_sides("output_padding", output_padding, self.sides, least=0)
        self.padding, self.padding_mode = self._as_padding(padding), _as_padding_mode(padding_mode)
        self.pads = self._pads(self.padding)
        bound = lipschitz_of(self)
        self.normalize = bool(normalize)
        self.lipschitz, self.scale = (1.0, 1 / bound) if normalize else (bound, 1.0)
        self._create(device, dtype, bias)
        self.reset_parameters()

    def _as_padding(self, padding: str | Sides) -> str | tuple[int, ...]:
        if not isinstance(padding, str):
            return as_sides("padding", padding, self.sides, least=0)
        if padding not in PADDINGS or self.is_transposed:
            other = "" if self.is_transposed else f" or one of {PADDINGS}"
            raise ValueError(f"expected padding to be numbers of pixels{other}, got {padding!r}")
        if padding == "same" and any(s != 1 for s in self.stride):
            raise ValueError(f"expected no stride with padding='same', as torch does, got stride={self.stride}")
        return padding

    def _pads(self, padding: str | tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """Pixels that padding adds before and after each side."""
        if not isinstance(padding, str):
            return tuple((p, p) for p in padding)
        spans = [d * (k - 1) if padding == "same" else 0 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        return tuple((span // 2, span - span // 2) for span in spans)

    def _create(self, device: torch.device | str | None, dtype: torch.dtype | None, bias: bool) -> None:
        channels = self.in_channels, self.out_channels
        rows, columns = channels if self.is_transposed else channels[::-1]
        columns, taps = columns // self.groups, math.prod(self.kernel_size)
        unfolded = (self.groups, rows // self.groups, columns * taps)
        self.register_unitary("weight", (rows, columns, *self.kernel_size), device, dtype, unfolded)
        self.register_parameter("bias", self.new_parameter((self.out_channels,), device, dtype) if bias else None)

    def reset_parameters(self) -> None:
        """Draws the weight anew and sets the bias to zero."""
        delta = partial(centred_delta_, kernel_size=self.kernel_size)
        self.reset_unitary({"dirac": delta, "identity": delta}.get(str(self.init)))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def matrix(self) -> Tensor:
        """The unfolded kernel of each group ``(groups, m, n)``, as a differentiable view of the weight."""
        return self.unitary_weight("weight").as_matrix(self.weight)

    def spatial_kernel(self) -> Tensor:
        """The kernel that torch's layer would hold, differentiable: the weight, divided if ``normalize`` says so.

        In evaluation it is that of the weight in use; see Note [Averages of weights].
        """
        return kernel_of(self, in_use(self, "weight"))

    def extra_repr(self) -> str:
        none, ones = (0,) * self.sides, (1,) * self.sides
        shown = {"padding": none, "dilation": ones, "output_padding": none, "groups": 1, "padding_mode": "zeros"}
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        parts += [f"{k}={getattr(self, k)!r}" for k, default in shown.items() if getattr(self, k) != default]
        flags = {"bias=False": self.bias is None, "normalize=True": self.normalize, "complex=True": self.is_complex}
        parts += [flag for flag, is_set in flags.items() if is_set]
        return ", ".join([*parts, *self.extra_repr_of_rule("haar")])


def lipschitz_of(layer: StiefelNd) -> float:
    """The Lipschitz constant of an orthonormal kernel with the options that a layer has now.

    See Note [Lipschitz constant of a kernel].
    """
    modes = [layer.padding_mode] * layer.sides
    return math.sqrt(math.prod(map(most_reads, layer.kernel_size, layer.stride, layer.dilation, layer.pads, modes)))


def kernel_of(layer: StiefelNd, weight: Tensor) -> Tensor:
    """The kernel of a layer for its weight, as it is stored; a function and no method, for scripted layers."""
    kernel = as_complex(weight, layer.is_complex)
    return kernel if layer.scale == 1 else kernel * layer.scale


def kernel_for(layer: StiefelNd, name: str, input: Tensor) -> Tensor:
    """The kernel in the precision of an input, after a look at that by the name of the layer."""
    kernel = kernel_of(layer, in_use(layer, "weight"))
    check_input(name, input, kernel)
    if input.ndim not in (kernel.ndim - 1, kernel.ndim):
        raise RuntimeError(
            f"{name}: expected {kernel.ndim - 1}D (unbatched) or {kernel.ndim}D input, got shape {tuple(input.shape)}"
        )
    return as_half(kernel, input)


def bias_of(layer: StiefelNd) -> Tensor | None:
    """The bias of a layer."""
    return None if layer.bias is None else as_complex(layer.bias, layer.is_complex)


@torch.no_grad()
def centred_delta_(matrix: Tensor, kernel_size: tuple[int, ...]) -> Tensor:
    """Fills unfolded kernels ``(groups, m, channels * taps)`` with centred deltas, as ``nn.init.dirac_`` does.

    Row i takes channel i. Where there are more rows than channels the others take the channels again, at the tap next
    to the centre, and so on; so rows or columns are orthonormal.
    """
    taps, (m, n) = math.prod(kernel_size), matrix.shape[-2:]
    places = torch.cartesian_prod(*(torch.arange(k) - k // 2 for k in kernel_size)).view(taps, -1)
    nearest = places.square().sum(1).argsort(stable=True).to(matrix.device)
    row = torch.arange(min(m, n), device=matrix.device)
    matrix.zero_()
    matrix[..., row, row % (n // taps) * taps + nearest[row // (n // taps)]] = 1
    return matrix


def _as_padding_mode(mode: object) -> str:
    if not isinstance(mode, str) or mode not in PADDING_MODES:
        raise ValueError(f"expected padding_mode to be one of {PADDING_MODES}, got {mode!r}")
    return mode
