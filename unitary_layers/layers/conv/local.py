"""Convolutions with a local kernel made of orthogonal matrices, as a value without parameters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...linalg.signal.grid import fold_periodic, pad_periodic
from ...linalg.signal.kernel import centred_shifts, local_kernel, shift_count
from ...training.precision import without_autocast
from .full import Factored

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


# Note [Zeros around an image]
# A circular convolution with orthonormal rows maps the whole periodic signal. With zeros around the image it is that
# of a larger periodic signal, which is zero outside of the image, and of whose output only a part is looked at. So no
# distance grows, and what goes over the border is lost. 12 x 12 pixels, 3 x 3 taps, 8 channels, Haar, three
# draws: 84 % of the singular values are 1, the least are 0.03, 3e-6 and 9e-8.

# Note [Stride and dilation]
# Two taps u and u' of a kernel meet in A A^T where d (u - u') is a multiple of the stride s. Without a factor in common
# that is where u - u' is one: as without the dilation. So A A^T = I stays true.


@dataclass(frozen=True)
class LocalSupport:
    """A convolution with a small kernel made of orthogonal matrices, for images of any size.

    Attributes:
        in_channels: of one group.
        out_channels: of one group.
        groups: number of them.
        kernel_size: of each side, at least the stride.
        stride: of each side.
        dilation: of each side, without a factor in common with the stride.
        padding_mode: "circular", or "zeros", with which it is no isometry; see Note [Zeros around an image].
    """

    in_channels: int
    out_channels: int
    groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding_mode: str = "circular"

    @property
    def is_periodic(self) -> bool:
        """Whether the image goes on periodically, and not with zeros."""
        return self.padding_mode == "circular"

    @property
    def channels(self) -> int:
        """Channels that are shifted: those of the input, with zeros appended where the output has room for more."""
        return max(self.in_channels, self.out_channels // math.prod(self.stride))

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Of the mixing matrices ``(groups, m', n')`` and of those that shift ``(groups * f, m, m // 2)``, if any."""
        m, shifts = self.channels, shift_count(self.kernel_size, self.stride)
        mixing = (self.groups, self.out_channels, m * math.prod(self.stride))
        return mixing, (self.groups * shifts, m, m // 2) if shifts and m > 1 else None

    def kernel(self, weight: Tensor, shifts: Tensor | None) -> Tensor:
        """The kernel ``(groups * out_channels, in_channels, *kernel_size)``."""
        count, m = shift_count(self.kernel_size, self.stride), self.channels
        shifts = weight.new_zeros(self.groups * count, m, 0) if shifts is None else shifts
        shifts = shifts.unflatten(0, (self.groups, count))
        with without_autocast(weight.device.type):  # the kernel is exact, whatever it is applied in
            kernel = local_kernel(weight, shifts, self.kernel_size, self.stride)
        return kernel[:, :, : self.in_channels].flatten(end_dim=1)

    def start(self, init: str, device: torch.device) -> dict[str, Tensor]:
        """For "dirac" and "identity" the shifts ``(groups * f, m, m // 2)`` of a centred delta."""
        if init not in ("dirac", "identity") or self.shapes()[1] is None:
            return {}
        return {"shifts": centred_shifts(self.channels, self.kernel_size, self.stride).repeat(self.groups, 1, 1)}

    def padding(self) -> tuple[list[int], list[int]]:
        """Pixels before and after each side, as for ``padding="same"``."""
        spans = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        return [span // 2 for span in spans], [span - span // 2 for span in spans]

    def constants(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def convolve(
        self,
        x: Tensor,
        weight: Tensor,
        shifts: Tensor | None,
        constants: dict[str, Tensor],
        factored: Factored = (None, None),
    ) -> Tensor:
        """``x`` ``(b, groups * in_channels, *size)`` to ``(b, groups * out_channels, *size / stride)``."""
        self._check_sides(x.shape[2:])
        kernel = self.kernel(weight, shifts).to(x.dtype)
        before, after = self.padding()
        padded = pad_periodic(x, before, after) if self.is_periodic else F.pad(x, _widths(before, after))
        return CONVOLUTIONS[len(self.stride)](padded, kernel, None, self.stride, 0, self.dilation, self.groups)

    def adjoint(self, y: Tensor, weight: Tensor, shifts: Tensor | None, constants: dict[str, Tensor]) -> Tensor:
        """``y`` ``(b, groups * out_channels, *size)`` to ``(b, groups * in_channels, *size * stride)``: the adjoint.

        torch's transposed convolution goes beyond the image. What lies there is folded back, modulo the size of the
        image, or cut off where there were zeros.
        """
        kernel, more = self.kernel(weight, shifts).to(y.dtype), [s - 1 for s in self.stride]
        wide = TRANSPOSED[len(self.stride)](y, kernel, None, self.stride, 0, more, self.groups, self.dilation)
        before, after = self.padding()
        if self.is_periodic:
            return fold_periodic(wide, before, after)
        return F.pad(wide, [-width for width in _widths(before, after)])

    def _check_sides(self, size: Sequence[int]) -> None:
        if any(n % s for n, s in zip(size, self.stride, strict=True)):
            raise ValueError(f"expected sides that are multiples of the stride {self.stride}, got {tuple(size)}")


def _widths(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """As ``F.pad`` takes them: the last side first."""
    return [width for pair in zip(reversed(before), reversed(after), strict=True) for width in pair]
