"""What orthogonal convolutions and their adjoints share, of one, two and three dimensions: options and parameters."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...init import haar_, identity_
from ...projunn.rule import UpdateRule
from ..base.forward import in_use
from ..base.inputs import Sides, as_sides, as_size, check_channels
from ..base.module import UnitaryModule
from .full import BASIS_POINTS, FullSupport
from .local import LocalSupport
from .padding import as_padding_mode
from .support import described, support_of

TRANSFORMS = ("auto", "basis", "fft")

# Note [Constants of a transform]
# They are no buffers, though they have to be where the weight is. A state dict does not hold them, and whoever makes a
# model on the meta device and then assigns its tensors one by one, as transformers does, gives any memory to the
# buffers of which he has no values. So they follow the weight, wherever it comes from.


class OrthogonalNd(UnitaryModule):
    """What :class:`OrthogonalConv2d`, :class:`OrthogonalConvTranspose2d` and their kin share.

    The matrices are those of a convolution A; a transposed layer is its adjoint A^T, from the outputs of A to its
    inputs.
    """

    sides: ClassVar[int]
    is_transposed: ClassVar[bool]
    weight: Tensor
    weight_pairs: Tensor | None
    bias: Tensor | None
    extra_inits = ("local", "dirac")
    __constants__: ClassVar[list[str]] = ["stride", "_support", "_others"]  # what forward reads

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sides | None,
        stride: Sides,
        dilation: Sides,
        groups: int,
        bias: bool,
        padding_mode: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        input_size: Sides | None,
        transform: str,
        update: UpdateRule,
        init: str | Callable[..., Tensor] | None,
        gradient: str,
    ) -> None:
        default_init = "local" if kernel_size is None else "haar"
        super().__init__(update, default_init if init is None else init, dtype, gradient)
        if self.is_complex:
            raise ValueError(f"expected a real dtype, got {dtype}: an orthogonal convolution maps real signals")
        self.in_channels = as_size("in_channels", in_channels)
        self.out_channels = as_size("out_channels", out_channels)
        self.groups = as_size("groups", groups)
        check_channels(self.in_channels, self.out_channels, self.groups)
        self.stride = as_sides("stride", stride, self.sides)
        self.dilation = as_sides("dilation", dilation, self.sides)
        self.kernel_size = None if kernel_size is None else as_sides("kernel_size", kernel_size, self.sides)
        self.padding_mode = as_padding_mode(padding_mode, is_local=kernel_size is not None)
        self.input_size = None if input_size is None else as_sides("input_size", input_size, self.sides)
        self._support = described(
            self._full(transform) if self.kernel_size is None else self._local(self.kernel_size, transform)
        )
        self._create(device, dtype, bias)
        self.reset_parameters()

    def _full(self, transform: str) -> FullSupport:
        if self.input_size is None:
            raise ValueError(
                "expected input_size with kernel_size=None, where the kernel is as large as the input; pass one of them"
            )
        size = self.input_size  # of the convolution's signal: of an adjoint that is the output
        if self.is_transposed:
            size = tuple(n * s for n, s in zip(size, self.stride, strict=True))
        elif any(n % s for n, s in zip(size, self.stride, strict=True)):
            raise ValueError(f"expected an input_size in multiples of stride={self.stride}, got {size}")
        if transform not in TRANSFORMS or any(d != 1 for d in self.dilation):
            raise ValueError(
                f"expected transform to be one of {TRANSFORMS} and no dilation with kernel_size=None, got "
                f"transform={transform!r}, dilation={self.dilation}"
            )
        if transform == "auto":
            points = torch.Size(n // s for n, s in zip(size, self.stride, strict=True)).numel()
            transform = "basis" if points <= BASIS_POINTS else "fft"
        return FullSupport(*self._channels(), self.groups, self.stride, size, transform)

    def _local(self, kernel_size: tuple[int, ...], transform: str) -> LocalSupport:
        if any(k < s for k, s in zip(kernel_size, self.stride, strict=True)):
            raise ValueError(f"expected a kernel_size of at least stride={self.stride}, got {kernel_size}")
        if any(math.gcd(s, d) > 1 for s, d in zip(self.stride, self.dilation, strict=True)):
            raise ValueError(
                f"expected a dilation without a factor in common with the stride, got {self.dilation} and "
                f"stride={self.stride}"
            )
        if self.input_size is not None or transform != "auto":
            raise ValueError(
                "input_size and transform belong to kernel_size=None; leave them out: a local kernel fits any size"
            )
        channels = self._channels()
        return LocalSupport(*channels, self.groups, kernel_size, self.stride, self.dilation, self.padding_mode)

    def _channels(self) -> tuple[int, int]:
        """Inputs and outputs of the convolution, of one group."""
        there = self.in_channels // self.groups, self.out_channels // self.groups
        return there[::-1] if self.is_transposed else there

    def _create(self, device: torch.device | str | None, dtype: torch.dtype | None, bias: bool) -> None:
        weight, others = self.support.shapes()
        full = isinstance(self.support, FullSupport)
        self._others = "weight_pairs" if full else "shifts"
        self.register_unitary("weight", weight, device, dtype)
        if others is None:
            self.register_parameter(self._others, None)
        else:
            wide = (torch.get_default_dtype() if dtype is None else dtype).to_complex() if full else dtype
            self.register_unitary(self._others, others, device, wide)
        self.register_parameter("bias", self.new_parameter((self.out_channels,), device, dtype) if bias else None)

    def reset_parameters(self) -> None:
        """Draws the weights anew, sets the bias to zero and computes the constants of the transform."""
        start = {} if self.weight.is_meta else self.support.start(str(self.init), self.weight.device)
        drawn = identity_ if "weight" in start else haar_  # large Haar matrices take half a minute
        self.reset_unitary({"local": drawn, "dirac": identity_}.get(str(self.init)))
        self._assign(start)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self._fill_constants()

    def _fill_constants(self) -> None:
        """Computes the constants of the transform for the present place and precision of the weights."""
        device, dtype = self.weight.device, self.weight.dtype
        self._constants = {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in self.support.constants().items()
        }

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Registers a parameter as any module does; the constants of the transform follow the weight."""
        super().register_parameter(name, param)
        if name == "weight" and param is not None and hasattr(self, "_constants"):
            self._fill_constants()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "OrthogonalNd":
        super()._apply(fn, recurse)
        self._fill_constants()
        return self

    @property
    def support(self) -> FullSupport | LocalSupport:
        """The kind of convolution, as a value without parameters."""
        return support_of(self._support)

    @property
    def matrix(self) -> Tensor:
        """What the weights stand for, differentiable: the unitary blocks at all frequencies ``(*grid, groups, m, n)``
        of a full-support convolution, or the mixing matrices ``(groups, m, n)`` of a local one."""
        if isinstance(support := self.support, LocalSupport):
            return self.weight
        return support.matrices(self.weight, self.weight_pairs)

    def spatial_kernel(self) -> Tensor:
        """The kernel of the same convolution by torch, differentiable, ``(out_channels, in_channels / groups, *taps)``.

        That of a transposed layer is ``(in_channels, out_channels / groups, *taps)``, as in ``nn.ConvTranspose2d``.

        A local one is applied with ``padding="same"`` (with a stride, ``(taps - 1) // 2`` pixels) and
        ``padding_mode="circular"``; one with full support after
        padding periodically by ``taps - 1`` pixels behind each side. In evaluation it is that of the matrices in use;
        see Note [Averages of weights].
        """
        return self.support.kernel(in_use(self, "weight"), in_use(self, self._others))

    @torch.no_grad()
    def load_spatial_kernel_(self, kernel: Tensor, padding: Sides = 0) -> None:
        """Sets a full-support convolution to the orthogonal one nearest to that of a kernel, frequency by frequency.

        Args:
            kernel: as :meth:`spatial_kernel` returns it, with at most as many taps, for example that of ``nn.Conv2d``.
            padding: taps before the output pixel: ``(taps - 1) // 2`` for a centred kernel.

        Raises:
            ValueError: for a kernel of another shape, with NaN or infinity; or for a local convolution, whose kernel is
                made of matrices that are not unique.
        """
        if isinstance(support := self.support, LocalSupport):
            raise ValueError("expected a convolution of full support (kernel_size=None), got a local one")
        inputs, outputs = self._channels()
        expected = (outputs * self.groups, inputs)
        fits = kernel.ndim == 2 + self.sides and tuple(kernel.shape[:2]) == expected
        if not fits or any(k > n for k, n in zip(kernel.shape[2:], support.size, strict=True)):
            raise ValueError(
                f"expected a kernel {expected} with at most {support.size} taps, got shape {tuple(kernel.shape)}"
            )
        if not torch.isfinite(kernel).all():
            raise ValueError(f"expected a finite kernel, got NaN or infinity in shape {tuple(kernel.shape)}")
        shift = [-p for p in as_sides("padding", padding, self.sides, least=0)]
        widths = [w for n, k in zip(support.size, kernel.shape[2:], strict=True) for w in (n - k, 0)][::-1]
        kernel = nn.functional.pad(kernel.to(self.weight.device, torch.float64), widths)
        real, pairs = support.blocks(kernel.roll(shift, tuple(range(2, kernel.ndim))))
        self._assign({"weight": real, "weight_pairs": pairs})

    def _assign(self, matrices: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, matrix in matrices.items():
                if (parameter := getattr(self, name)) is not None:
                    parameter.copy_(torch.view_as_real(matrix) if matrix.is_complex() else matrix)

    def extra_repr(self) -> str:
        shown: dict[str, Any] = {
            "kernel_size": None,
            "stride": (1,) * self.sides,
            "dilation": (1,) * self.sides,
            "groups": 1,
        }
        shown |= {"input_size": None, "padding_mode": "circular"}
        parts = [f"{k}={getattr(self, k)!r}" for k, default in shown.items() if getattr(self, k) != default]
        parts += [] if self.bias is not None else ["bias=False"]
        default_init = "local" if self.kernel_size is None else "haar"
        return ", ".join([f"{self.in_channels}, {self.out_channels}", *parts, *self.extra_repr_of_rule(default_init)])
