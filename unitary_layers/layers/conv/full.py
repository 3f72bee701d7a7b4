"""Convolutions of full support: a unitary matrix at each frequency, as a value without parameters."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ...linalg import haar_unitary, nearest_unitary
from ...linalg.signal.grid import depth_to_space, space_to_depth
from ...linalg.signal.kernel import blocks_of_kernel, kernel_of_blocks, local_kernel, shift_count
from ...linalg.signal.spectrum import (
    FFT_NODES,
    FFT_PLAIN,
    Bins,
    bins_of,
    frequencies,
    from_bins_by_basis,
    mirrored,
    pair_matmul,
    real_dft_basis,
    to_bins_by_basis,
)
from ...linalg.transforms import is_transformed
from ...training.factored.graphs import Sampled, collect
from ...training.precision import output_dtype, without_autocast

Factored = tuple[Sampled | None, Sampled | None]  # those of a layer's weights that are collected
# Up to this many points a product with the dense basis is the faster transform; on two cores they meet at 16 x 16.
BASIS_POINTS = 256


@dataclass(frozen=True)
class FullSupport:
    """A circular convolution whose kernel is as large as the image: one matrix a frequency.

    A stride first turns pixels into channels; then the convolution is one of a smaller image.

    Attributes:
        in_channels: of one group.
        out_channels: of one group.
        groups: number of them.
        stride: of each side.
        size: of the input.
        transform: "basis" or "fft"; see Note [Two transforms, one map].
    """

    in_channels: int
    out_channels: int
    groups: int
    stride: tuple[int, ...]
    size: tuple[int, ...]
    transform: str

    @property
    def grid(self) -> tuple[int, ...]:
        """Size of the output."""
        return tuple(n // s for n, s in zip(self.size, self.stride, strict=True))

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of the matrix at each frequency."""
        return self.out_channels, self.in_channels * math.prod(self.stride)

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Of the real matrices ``(s * groups, m, n)`` and of the complex ones ``(p * groups, m, n)``, if any."""
        # Four dimensions as they are stored and no more: five would be refused by to(memory_format=channels_last).
        real, pairs = (len(part) for part in frequencies(self.grid))
        return (real * self.groups, *self.block), (pairs * self.groups, *self.block) if pairs else None

    def constants(self) -> dict[str, Tensor]:
        """What the transform needs, to be held by the layer."""
        return {"basis": real_dft_basis(self.grid)} if self.transform == "basis" else bins_of(self.grid)._asdict()

    def convolve(
        self,
        x: Tensor,
        weight: Tensor,
        pairs: Tensor | None,
        constants: dict[str, Tensor],
        factored: Factored = (None, None),
    ) -> Tensor:
        """``x`` ``(b, groups * in_channels, *size)`` to ``(b, groups * out_channels, *grid)``."""
        return self._through_bins(space_to_depth(x, self.stride), weight, pairs, constants, factored)

    def adjoint(self, y: Tensor, weight: Tensor, pairs: Tensor | None, constants: dict[str, Tensor]) -> Tensor:
        """``y`` ``(b, groups * out_channels, *grid)`` to ``(b, groups * in_channels, *size)``: the adjoint."""
        # Of a pair (re, im) the conjugate is (re, -im).
        pairs_h = None if pairs is None else pairs.transpose(-3, -2) * pairs.new_tensor([1.0, -1.0])
        x = self._through_bins(y, weight.mT, pairs_h, constants, (None, None))
        return depth_to_space(x, self.stride)

    def _through_bins(
        self, x: Tensor, weight: Tensor, pairs: Tensor | None, constants: dict[str, Tensor], factored: Factored
    ) -> Tensor:
        """``x`` ``(b, channels, *grid)`` times the blocks at all frequencies."""
        if not x.is_meta and any(value.is_meta for value in constants.values()):  # a layer without data, called with it
            constants = self.constants()
        if self.transform == "basis":
            basis = self._basis(constants["basis"], x)
            real, z = to_bins_by_basis(x, basis, len(weight) // self.groups)
            return from_bins_by_basis(*self._multiply(real, z, weight, pairs, factored), basis=basis, size=self.grid)
        indices = Bins(**{name: value.to(x.device) for name, value in constants.items()})
        dtype = output_dtype(x)
        with without_autocast(x.device.type):  # there is no FFT in bfloat16
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            there, back = FFT_PLAIN if is_transformed() else FFT_NODES
            real, z = there(wide, indices)
            bins = self._multiply(real, z, weight, pairs, factored)
            return back(*bins, indices, self.grid).to(dtype)

    def _basis(self, held: Tensor, x: Tensor) -> Tensor:
        """The basis in the precision of ``x``: the one held, or a new one where that was rounded to less."""
        is_coarse = torch.finfo(held.dtype).eps > torch.finfo(x.dtype).eps  # as of float64 under functional_call
        return (real_dft_basis(self.grid) if is_coarse else held).to(x.device, x.dtype)

    def _multiply(
        self, real: Tensor, z: Tensor, weight: Tensor, pairs: Tensor | None, factored: Factored
    ) -> tuple[Tensor, Tensor]:
        """The blocks times bins ``(s, b, c)`` and ``(p, b, c, 2)``."""
        real = rearrange(real, "s b (g i) -> s g b i", g=self.groups)
        z = rearrange(z, "p b (g i) z -> p g b i z", g=self.groups)
        blocks = _constant(weight, factored[0]).unflatten(0, (-1, self.groups))
        y = real @ blocks.to(real.dtype).mT
        y = y if factored[0] is None else collect(y, factored[0], real)
        if pairs is None:
            y_z = z.new_zeros(0, self.groups, z.size(2), weight.size(-2), 2)
        else:
            blocks = _constant(pairs, factored[1]).unflatten(0, (-1, self.groups))
            y_z = pair_matmul(z, blocks.to(z.dtype))
            y_z = y_z if factored[1] is None else collect(y_z, factored[1], z)
        return rearrange(y, "s g b o -> s b (g o)"), rearrange(y_z, "p g b o z -> p b (g o) z")

    def kernel(self, weight: Tensor, pairs: Tensor | None) -> Tensor:
        """The kernel ``(groups * out_channels, in_channels, *size)`` of the same convolution."""
        kernel = kernel_of_blocks(self.matrices(weight, pairs).flatten(len(self.grid), -2))  # all groups' rows
        return depth_to_space(kernel, self.stride)

    def matrices(self, weight: Tensor, pairs: Tensor | None) -> Tensor:
        """The matrices at all frequencies, complex ``(*grid, groups, m, n)``."""
        stored = weight.new_zeros(0, *weight.shape[1:], 2) if pairs is None else pairs
        real, z = (part.unflatten(0, (-1, self.groups)) for part in (weight, torch.view_as_complex(stored)))
        return mirrored(real, z, self.grid)

    def blocks(self, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """The unitary matrices nearest to those of a kernel ``(groups * out_channels, in_channels, *size)``."""
        blocks = blocks_of_kernel(space_to_depth(kernel, self.stride), self.grid)
        blocks = rearrange(blocks.flatten(end_dim=-3), "f (g o) i -> f g o i", g=self.groups)
        real, pairs = (blocks[part.to(blocks.device)].flatten(end_dim=1) for part in frequencies(self.grid))
        return nearest_unitary(real.real), nearest_unitary(pairs)

    def start(self, init: str, device: torch.device) -> dict[str, Tensor]:
        """For "local" the matrices of a Haar-random convolution with three taps a side (on a side below 3, as many)."""
        if init != "local":
            return {}
        n, ones = max(self.block), (1,) * len(self.grid)
        taps = [min(3, side) for side in self.grid]
        draw: dict[str, Any] = {"dtype": torch.float64, "device": device}
        shifts = haar_unitary(n, n // 2, batch=(self.groups, shift_count(taps, ones)), **draw)
        kernel = local_kernel(haar_unitary(n, batch=(self.groups,), **draw), shifts, taps, ones)
        centre, sides = [-((t - 1) // 2) for t in taps], tuple(range(-len(taps), 0))
        padded = F.pad(kernel, [w for side, t in zip(self.grid, taps, strict=True) for w in (side - t, 0)][::-1])
        blocks = blocks_of_kernel(padded.roll(centre, sides).flatten(end_dim=1), self.grid)
        blocks = rearrange(blocks.flatten(end_dim=-3), "f (g o) i -> f g o i", g=self.groups)
        real, pairs = (blocks[part.to(device)].flatten(end_dim=1) for part in frequencies(self.grid))
        rows, columns = self.block
        return {"weight": real.real[..., :rows, :columns], "weight_pairs": pairs[..., :rows, :columns]}


def _constant(weight: Tensor, factored: Sampled | None) -> Tensor:
    """The weight as autograd is to see it; see Note [Sampling inside backward]."""
    return weight if factored is None else weight.detach()
