"""The development of a path on the unitary group, by generators in the eigenbases of unitary weights."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ...linalg.transforms import is_transformed
from ...projunn.rule import UpdateRule
from ...training.precision import output_dtype, without_autocast
from ..base.forward import value_in_use, watch_own
from ..base.inputs import as_dtype, as_size, check_input
from ..base.module import UnitaryModule
from .products import paired, product, products, scaled, steps_of, to_double


class UnitaryDevelopment(UnitaryModule):
    r"""The development of a path: a unitary (real dtype: orthogonal) matrix that tells its shape and not its speed.

    .. math:: Z_{t+1} = Z_t \prod_i \exp(A_i (x_{t+1,i} - x_{t,i})), \qquad Z_1 = I

    with one skew-Hermitian generator ``A_i`` a feature i, and n x n matrices. It reads the increments of the path
    alone: points that are repeated, or lie between two others on a line along one feature, change nothing, the
    development of two paths one after the other is the product of theirs, and sequences of any length give features of
    one size. The generators are ``A_i = Q_i diag(i d_i) Q_i^H`` with unitary ``Q_i`` that move by projUNN's step, and
    free real ``d_i``; of a real layer the columns of ``Q_i`` turn in pairs, by the angle ``d_ij dx_i``, and one column
    of an odd number stays. So no exponential of a matrix is computed. See Note [Factors of a step].

    Source: H. Lou, S. Li, H. Ni, "Path development network with finite-dimensional Lie group representation",
    arXiv 2204.00740, whose step is ``exp(sum_i A_i dx_i)``. The product here is the exact development of the path that
    moves along one feature after the other.

    Args:
        input_size: features of the path.
        hidden_size: rows n of the matrices.
        channels: developments of the same path, each with generators of its own.
        batch_first: whether padded input and output are ``(batch, seq, ...)``, which they are unless told otherwise.
        device: of the parameters.
        dtype: real or complex; the path is real in both cases.
        return_sequence: whether to return the development up to each point, not that of the whole path alone.
        update: how the unitary weights move.
        init: how they start: "haar", "identity", "henaff", "cayley", "timescales" or a filler.
        gradient: "dense", and no other.

    Inputs:
        input: ``(batch, seq, input_size)``, ``(seq, batch, input_size)`` if not ``batch_first``, ``(seq, input_size)``,
            or a ``PackedSequence``. Of shorter sequences in a padded batch repeat the last point.

    Outputs:
        ``(batch, channels, n, n)``, without the batch for an unbatched path; with ``return_sequence``
        ``(batch, seq, channels, n, n)``, in the form of the input, beginning with the identity.

    Attributes:
        weight: the unitary matrices Q ``(channels, input_size, n, n)`` (complex: pairs ``(..., 2)``).
        spectrum: d ``(channels, input_size, n)``, of a real layer ``(channels, input_size, n // 2)``, in radians a unit
            of the path; drawn from a normal distribution of variance ``1 / input_size``.

    Raises:
        ValueError: for a size below 1, an unknown init, or ``gradient="factored"``.
        ValueError, RuntimeError: in ``forward``, for an input of another shape, dtype or device.

    Example:
        >>> development = UnitaryDevelopment(3, 8)
        >>> path = torch.randn(5, 20, 3).cumsum(1)
        >>> development(path).shape
        torch.Size([5, 1, 8, 8])
        >>> development(path).square().sum().backward()
        >>> development.projunn_step()
    """

    weight: Tensor
    spectrum: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        channels: int = 1,
        batch_first: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        return_sequence: bool = False,
        update: UpdateRule = UpdateRule(),  # noqa: B008 (a frozen value)
        init: str | Callable[..., Tensor] = "haar",
        gradient: str = "dense",
    ) -> None:
        super().__init__(update, init, dtype, gradient)
        if gradient == "factored":
            raise ValueError(
                'expected gradient="dense": every row of every step is a row of the gradient, which so has no thin '
                'factors; got "factored"'
            )
        for name, flag in (("batch_first", batch_first), ("return_sequence", return_sequence)):
            if not isinstance(flag, bool):
                raise TypeError(f"{name} should be of type bool, got: {type(flag).__name__}")
        self.input_size = as_size("input_size", input_size)
        self.hidden_size = as_size("hidden_size", hidden_size)
        self.channels = as_size("channels", channels)
        self.batch_first, self.return_sequence = batch_first, return_sequence
        n, leading = self.hidden_size, (self.channels, self.input_size)
        self.register_unitary("weight", (*leading, n, n), device, dtype)
        angles = (*leading, n if self.is_complex else n // 2)
        self.spectrum = nn.Parameter(torch.empty(angles, device=device, dtype=as_dtype(dtype).to_real()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the unitary weights and the spectra anew."""
        self.reset_unitary()
        nn.init.normal_(self.spectrum, std=1 / math.sqrt(self.input_size))

    @property
    def matrix(self) -> Tensor:
        """Q ``(channels, input_size, n, n)``, real or complex, as a differentiable view of the stored weight."""
        return self.value("weight")

    def generators(self) -> Tensor:
        """The skew-Hermitian matrices A ``(channels, input_size, n, n)``, differentiable."""
        weight, spectrum = paired(self.matrix, self.spectrum.to(self.weight.dtype))
        return scaled(weight, 1j * spectrum.unsqueeze(-2)) @ weight.mH

    def forward(self, input: Tensor | PackedSequence) -> Tensor | PackedSequence:
        if isinstance(input, Proxy):
            return self.recorded(input)
        watch_own(self)
        if isinstance(input, PackedSequence):
            return self._packed(input)
        check_input("UnitaryDevelopment", input, self.weight)
        if input.ndim not in (2, 3):
            raise ValueError(f"UnitaryDevelopment: expected 2D (unbatched) or 3D input, got {input.ndim}D")
        batched = input.ndim == 3
        path = (input.transpose(0, 1) if self.batch_first else input) if batched else input.unsqueeze(1)
        z = self._developed(path)
        if not batched:
            return z.squeeze(-4)
        return z.transpose(0, 1) if self.return_sequence and self.batch_first else z

    def _packed(self, input: PackedSequence) -> Tensor | PackedSequence:
        data, sizes, order, undo = input
        check_input("UnitaryDevelopment", data, self.weight)
        path, lengths = pad_packed_sequence(PackedSequence(data, sizes))
        z = self._developed(path, lengths)
        if not self.return_sequence:
            return z if undo is None else z.index_select(0, undo)
        pairs = torch.view_as_real(z) if z.is_complex() else z  # torch differentiates no packing of complex numbers
        packed = pack_padded_sequence(pairs, lengths).data
        return PackedSequence(torch.view_as_complex(packed) if z.is_complex() else packed, sizes, order, undo)

    def _developed(self, path: Tensor, lengths: Tensor | None = None) -> Tensor:
        """``(seq, batch, input_size)`` to ``(batch, channels, n, n)`` or ``(seq, batch, channels, n, n)``."""
        if path.size(-1) != self.input_size:
            raise RuntimeError(f"UnitaryDevelopment: expected input_size={self.input_size}, got {path.size(-1)}")
        if path.size(0) == 0:
            raise RuntimeError("UnitaryDevelopment: expected a path of at least one point, got a sequence length of 0")
        if torch.is_grad_enabled() and not is_transformed():
            self.uses = max(path.size(0) - 1, 1)
        with without_autocast(path.device.type):
            weight, wide = value_in_use(self, "weight"), path.to(self.weight.dtype)
            increments = wide.diff(dim=0)
            if lengths is not None:  # behind the end of a sequence its last point is repeated
                alive = torch.arange(1, path.size(0), device=lengths.device).unsqueeze(1) < lengths
                increments = increments * alive.unsqueeze(-1).to(increments)
            spectrum = self.spectrum.to(wide.dtype)
            steps = steps_of(increments.flatten(0, 1), weight, spectrum).unflatten(1, increments.shape[:2])
            eye = torch.eye(self.hidden_size, dtype=weight.dtype, device=weight.device)
            eye = eye.expand(self.channels, to_double(points := path.size(0)) + 1, path.size(1), -1, -1)
            steps = torch.cat([eye[:, :1], steps, eye[:, 1:]], 1)
            z = products(steps)[:, :points].movedim(0, 2) if self.return_sequence else product(steps).movedim(0, 1)
        return z if self.is_complex else z.to(output_dtype(path))

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"channels": 1, "batch_first": True, "return_sequence": False}
        parts += [f"{k}={getattr(self, k)!r}" for k, default in defaults.items() if getattr(self, k) != default]
        parts += ["complex=True"] if self.is_complex else []
        return ", ".join([*parts, *self.extra_repr_of_rule("haar")])
