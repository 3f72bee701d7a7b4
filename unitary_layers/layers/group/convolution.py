"""The unitary convolution on finite groups."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ...projunn.rule import UpdateRule
from ..base.forward import value_in_use, watch_own
from ..base.inputs import as_size, check_input
from ..base.module import UnitaryModule

# Note [Half moves]
# The map (R_h x)(g) = x(g h) of signals on a group is a permutation, and commutes with all products from the left. With
# a projection P = V V^H of the channels, x -> x + V (R_h - 1) V^H x moves one half of them and leaves the other: a
# unitary map that commutes with products from the left, whatever V is. A convolution is a product of such maps and a
# unitary mixture W of the channels at each element, as the local kernels of images are, whose group is that of the
# shifts; see Note [A local kernel from orthogonal matrices]. Each V and W moves by projUNN. The half moves act where
# there are more channels, so that none is lost: before W if it has more columns than rows, else behind it.


class UnitaryGroupConv(UnitaryModule):
    r"""A convolution of signals on a finite group that keeps their norm, and commutes with the group.

    Each element hears of those that the moves reach from it: with f moves h_1 to h_f of all products of some of them.
    When the signal is moved by a product from the left, the output moves along: ``layer(L_h x) = L_h layer(x)``.

    Source: B. Kiani, L. Fesser, M. Weber, "Unitary convolutions for learning on graphs and groups", NeurIPS 2024,
    arXiv 2410.05499, who take the exponential of a skew-Hermitian convolution; here it is a product of matrices that
    projUNN trains. See Note [Half moves].

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; more keep all lengths, fewer are a projection.
        moves: integers ``(f, size)``, in row j the permutation ``g -> g h_j`` of the elements of the group. From a
            table of products with ``table[g, h] = g h`` that is ``table.T[[h_1, ...]]``; for the symmetries of a
            polygon there is :func:`unitary_layers.linalg.dihedral_moves`.
        bias: whether to add a bias, which starts at zero.
        device: of the parameters.
        dtype: real or complex; a complex layer stores pairs of real numbers.
        update: how the weights move.
        init: how the weights start: "haar", "identity", "henaff", "cayley", "timescales" or a filler.

    Shape:
        Input ``(b, in_channels, size, ...)``, output ``(b, out_channels, size, ...)``: at each place of the dimensions
        behind, such as pixels, the same.

    Attributes:
        weight: the matrix W that mixes the channels ``(out_channels, in_channels)`` (complex: pairs).
        halves: the matrices V whose columns span what a move takes along ``(f, c, c // 2)``, c the larger number of
            channels; None for one channel.
        moves: int64 ``(f, size)``.
        bias: ``(out_channels,)`` (complex: ``(out_channels, 2)``) or None.

    Raises:
        TypeError, ValueError: for a size below 1, an unknown init, or moves that are not permutations.
        ValueError, TypeError, RuntimeError: in ``forward``, for an input of another shape, dtype or device.

    Example:
        >>> from unitary_layers.linalg import dihedral_moves
        >>> layer = UnitaryGroupConv(16, 16, dihedral_moves(4))
        >>> layer(torch.randn(2, 16, 8)).square().sum().backward()
        >>> layer.projunn_step()
    """

    weight: Tensor
    halves: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        moves: Tensor | Sequence[Sequence[int]],
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        update: UpdateRule = UpdateRule(),  # noqa: B008 (a frozen value)
        init: str | Callable[..., Tensor] = "haar",
    ) -> None:
        super().__init__(update, init, dtype)
        self.in_channels = as_size("in_channels", in_channels)
        self.out_channels = as_size("out_channels", out_channels)
        self.moves = as_moves(moves)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.register_unitary("weight", (self.out_channels, self.in_channels), **dd)
        channels = max(self.in_channels, self.out_channels)
        if channels > 1:
            self.register_unitary("halves", (len(self.moves), channels, channels // 2), **dd)
        else:
            self.register_parameter("halves", None)
        self.register_parameter("bias", self.new_parameter((self.out_channels,), **dd) if bias else None)
        self.reset_parameters()
        self._place_moves()

    def reset_parameters(self) -> None:
        """Draws the weights anew and sets the bias to zero."""
        self.reset_unitary()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def matrix(self) -> Tensor:
        """W ``(out_channels, in_channels)``, real or complex, as a differentiable view of the stored weight."""
        return self.value("weight")

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return self.recorded(input)
        watch_own(self)
        x = self._checked(input, self.in_channels)
        weight = value_in_use(self, "weight", x)
        widens = self.in_channels < self.out_channels
        y = self._moved(weight @ x) if widens else weight @ self._moved(x)
        y = y if self.bias is None else y + self.value("bias").to(y.dtype).unsqueeze(-1)
        return y.unflatten(2, input.shape[2:])

    def adjoint(self, output: Tensor) -> Tensor:
        """The adjoint of the map, without a bias: the inverse where the layer keeps all lengths.

        Args:
            output: ``(b, out_channels, size, ...)``, as ``forward`` returns it.

        Returns:
            ``(b, in_channels, size, ...)``, differentiable.

        Raises:
            ValueError, TypeError, RuntimeError: as ``forward``.
        """
        watch_own(self)
        y = self._checked(output, self.out_channels)
        weight = value_in_use(self, "weight", y).mH
        widens = self.in_channels < self.out_channels
        x = weight @ self._moved(y, back=True) if widens else self._moved(weight @ y, back=True)
        return x.unflatten(2, output.shape[2:])

    def _checked(self, x: Tensor, channels: int) -> Tensor:
        """``x`` ``(b, channels, size, ...)`` as ``(b, channels, size * ...)``."""
        size = self.moves.size(1)
        check_input("UnitaryGroupConv", x, self.value("weight"))
        if x.ndim < 3 or x.size(1) != channels or x.size(2) != size:
            raise ValueError(
                f"expected an input (b, {channels}, {size}, ...) for {channels} channels on a group of {size} "
                f"elements, got shape {tuple(x.shape)}"
            )
        return x.flatten(2)

    def _moved(self, x: Tensor, back: bool = False) -> Tensor:
        """``x`` ``(b, c, size * ...)`` after all half moves, or undone, from the last to the first."""
        if self.halves is None:
            return x
        moves = self.moves.to(x.device)
        steps = list(zip(value_in_use(self, "halves", x).unbind(0), moves.unbind(0), strict=True))
        for half, move in reversed(steps) if back else steps:
            part = half.mH @ x
            there = part.unflatten(2, (len(move), -1)).index_select(2, move.argsort() if back else move).flatten(2)
            x = x + half @ (there - part)
        return x

    def _place_moves(self) -> None:
        """Takes the moves to where the weights are; those of a layer without data stay where they are."""
        if not self.weight.is_meta:
            self.moves = self.moves.to(self.weight.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "UnitaryGroupConv":
        super()._apply(fn, recurse)
        self._place_moves()
        return self

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, {len(self.moves)} moves of {self.moves.size(1)} elements"]
        parts += [] if self.bias is not None else ["bias=False"]
        parts += ["complex=True"] if self.is_complex else []
        return ", ".join(parts + self.extra_repr_of_rule("haar"))


def as_moves(moves: Tensor | Sequence[Sequence[int]]) -> Tensor:
    """Permutations as int64 ``(f, size)``.

    Raises:
        ValueError: for another shape, dtype, or rows that are not permutations of 0 to size - 1.
    """
    given = moves if isinstance(moves, Tensor) else torch.as_tensor(moves, device="cpu")  # whatever the default is
    if given.ndim != 2 or not given.numel() or given.is_floating_point() or given.dtype == torch.bool:
        raise ValueError(
            f"expected moves as integers (f, size), a permutation a row, got {given.dtype} {tuple(given.shape)}"
        )
    given = given.detach().to("cpu", torch.int64)
    if not torch.equal(given.sort(-1).values, torch.arange(given.size(1), device="cpu").expand_as(given)):
        raise ValueError("expected each row of moves to be a permutation of 0 to size - 1, got one that is not")
    return given
