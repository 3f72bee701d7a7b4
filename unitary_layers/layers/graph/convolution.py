"""The unitary convolution on graphs."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from ...linalg.adjacency import Adjacency, adjacency_of, check_edges, of_sparse
from ...linalg.check import check_dense
from ...linalg.transforms import unwrapped
from ...projunn.rule import UpdateRule
from ...training.factored.graphs import collect
from ..base.forward import factored_weight, value_in_use, watch_own
from ..base.inputs import as_dtype, as_size
from ..base.module import UnitaryModule
from .exponential import graph_exponential

# Note [One time a channel]
# An orthogonal or unitary convolution with the matrix A of a graph is exp(A (x) G) in general, for a skew-Hermitian G.
# In the basis of its eigenvectors, G = Q diag(i t_j) Q^H, that is exp(i t_j A) for the channel j of X Q, and then Q^H:
# a layer with one unitary weight Q, used twice, and free times. A real antisymmetric G has pairs of eigenvectors, each
# of which turns as one pair of channels, so that of an odd number one channel stays.

LONGEST = 1e4  # of a time: the series has about as many terms
FLAGS = {"normalize": True, "add_self_loops": False, "symmetrize": False}  # of the matrix, with their defaults


class UnitaryGraphConv(UnitaryModule):
    r"""A convolution on graphs, ``exp(i t A) X W^T + b``, that keeps the norm of the features.

    A is the normalised adjacency matrix of the graph, W a unitary weight. Every node hears of all others, the nearer
    the more, and yet nothing is averaged away: however many layers follow one another, the features of different nodes
    stay as different as they were. Of real features neighbouring channels are pairs, and ``exp(i t A)`` is the
    orthogonal matrix that turns each pair; see Note [Pairs of channels].

    Source: B. Kiani, L. Fesser, M. Weber, "Unitary convolutions for learning on graphs and groups", NeurIPS 2024,
    arXiv 2410.05499. With one time a channel it is their Lie convolution, ``exp(A (x) G) X`` with a skew-Hermitian
    ``G = Q diag(i t) Q^H``; see Note [One time a channel].

    Args:
        in_channels: features of a node that come in.
        out_channels: features of a node that go out; more keep all lengths, fewer are a projection.
        bias: whether to add a bias, which starts at zero.
        device: of the parameters.
        dtype: real or complex; a complex layer stores pairs of real numbers.
        time: t, how far features travel along the edges, of either sign.
        learn_time: whether the times are a parameter, for any optimiser.
        per_channel: one time a channel, of real features a pair of channels, in the basis of a square weight. The times
            start evenly between ``-time`` and ``time``.
        tol: largest error of the exponential in the spectral norm, and so of the norm of the features; the rounding
            unit of the dtype if None. See Note [Chebyshev series of an exponential].
        normalize: whether to take ``D^-1/2 A D^-1/2``, with D the sums of the moduli of the weights of edges, in the
            place of the matrix A of the weights.
        add_self_loops: whether an edge of weight 1 from each node to itself is added.
        symmetrize: whether to take ``(A + A^T) / 2``; otherwise directed edges are refused.
        update: how the weight moves.
        init: how the weight starts: "haar", "identity", "henaff", "cayley", "timescales" or a filler.
        gradient: "dense" or "factored", that of the weight; see Note [Sampling inside backward].

    Inputs:
        x: ``(..., n, in_channels)``, the features of n nodes; all of a batch in front have the same edges.
        edge_index: int64 ``(2, edges)``, each edge in both directions, as torch_geometric has it. Or the matrix itself,
            ready for use: what :func:`unitary_layers.linalg.normalized_adjacency` returns, or a sparse tensor of torch
            ``(n, n)``; then ``edge_weight`` must be None, and the options of the matrix do not count.
        edge_weight: real ``(edges,)`` of either sign, ones if None; gradients flow to it.

    Outputs:
        ``(..., n, out_channels)``.

    Attributes:
        weight: W, as of :class:`UnitaryLinear`.
        time: with ``learn_time`` the times ``()``, per channel ``(channels,)``, or a pair of real ones; otherwise None.
        bias: ``(out_channels,)`` (complex: ``(out_channels, 2)``) or None.

    Raises:
        ValueError, TypeError: for a size below 1, an unknown init, a time that is not finite, a ``tol`` that is not
            positive, or ``per_channel`` with ``in_channels != out_channels``.
        ValueError, TypeError, RuntimeError: in ``forward``, for an input of another shape, dtype or device, or edges
            that :func:`unitary_layers.linalg.normalized_adjacency` refuses.

    Example:
        >>> layer = UnitaryGraphConv(16, 16)
        >>> edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> layer(torch.randn(3, 16), edge_index).square().sum().backward()
        >>> layer.projunn_step()
    """

    weight: Tensor
    time: Tensor | None
    reach: float | None = None  # the largest modulus of a time that was last seen
    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        time: float = 1.0,
        learn_time: bool = False,
        per_channel: bool = False,
        tol: float | None = None,
        normalize: bool = True,
        add_self_loops: bool = False,
        symmetrize: bool = False,
        update: UpdateRule = UpdateRule(),  # noqa: B008 (a frozen value)
        init: str | Callable[..., Tensor] = "haar",
        gradient: str = "dense",
    ) -> None:
        super().__init__(update, init, dtype, gradient)
        self.in_channels = as_size("in_channels", in_channels)
        self.out_channels = as_size("out_channels", out_channels)
        self.normalize, self.add_self_loops, self.symmetrize = normalize, add_self_loops, symmetrize
        self.per_channel, self.start, self.tol = per_channel, time, tol
        self._check(learn_time)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.register_unitary("weight", (self.out_channels, self.in_channels), **dd)
        times = self._start_times(device, as_dtype(dtype).to_real())
        self.register_parameter("time", nn.Parameter(times) if learn_time else None)
        self.register_parameter("bias", self.new_parameter((self.out_channels,), **dd) if bias else None)
        self.reset_parameters()

    def _check(self, learn_time: bool) -> None:
        flags = {name: getattr(self, name) for name in ("per_channel", *FLAGS)} | {"learn_time": learn_time}
        for name, flag in flags.items():
            if not isinstance(flag, bool):
                raise TypeError(f"{name} should be of type bool, got: {type(flag).__name__}")
        for name, number in (("time", self.start), ("tol", 1.0 if self.tol is None else self.tol)):
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise TypeError(f"expected {name} to be a number, got {number!r}")
        if not abs(self.start) <= LONGEST:
            raise ValueError(f"expected a time between {-LONGEST:g} and {LONGEST:g}, got {self.start}")
        if self.tol is not None and not 0 < self.tol < math.inf:
            raise ValueError(f"expected tol > 0 and finite, got {self.tol}")
        if self.per_channel and self.in_channels != self.out_channels:
            raise ValueError(
                "expected as many in_channels as out_channels with per_channel=True, whose times belong to the columns "
                f"of a square weight, got {self.in_channels} and {self.out_channels}"
            )

    def reset_parameters(self) -> None:
        """Draws the weight anew, sets the bias to zero and the times to their start."""
        self.reset_unitary()
        if self.time is not None:
            with torch.no_grad():
                self.time.copy_(self._start_times(self.time.device, self.time.dtype))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def matrix(self) -> Tensor:
        """W ``(out_channels, in_channels)``, real or complex, as a differentiable view of the stored weight."""
        return self.value("weight")

    def forward(self, x: Tensor, edge_index: Tensor | Adjacency, edge_weight: Tensor | None = None) -> Tensor:
        if isinstance(x, Proxy):
            return self.recorded(x, edge_index, edge_weight)
        watch_own(self)
        graph = self._graph(x, edge_index, edge_weight)
        factored = factored_weight(self, "weight")
        weight = value_in_use(self, "weight", x)
        constant = weight if factored is None else weight.detach()
        y = F.linear(x, constant)
        y = y if factored is None else collect(y, factored, x)
        y = self._along_edges(y, graph, 1)
        if self.per_channel:
            z, y = y, F.linear(y, constant.mH)
            y = y if factored is None else collect(y, factored, z, adjoint=True)
        return y if self.bias is None else y + self.value("bias").to(y.dtype)

    def adjoint(self, output: Tensor, edge_index: Tensor | Adjacency, edge_weight: Tensor | None = None) -> Tensor:
        """The adjoint of the map, without a bias: the inverse where the layer keeps all lengths.

        Args:
            output: ``(..., n, out_channels)``, as ``forward`` returns it.
            edge_index: as of ``forward``.
            edge_weight: as of ``forward``.

        Returns:
            ``(..., n, in_channels)``, differentiable; gradients that come through it are dense.

        Raises:
            ValueError, TypeError, RuntimeError: as ``forward``.
        """
        watch_own(self)
        graph = self._graph(output, edge_index, edge_weight)
        weight = value_in_use(self, "weight", output)
        y = F.linear(output, weight) if self.per_channel else output
        return F.linear(self._along_edges(y, graph, -1), weight.mH)

    def _graph(self, x: Tensor, edge_index: Tensor | Adjacency, edge_weight: Tensor | None) -> Adjacency:
        """The matrix of the edges between the nodes of an input, in the precision of the weight."""
        check_dense("input of UnitaryGraphConv", x)
        if x.ndim < 2:
            raise ValueError(f"expected an input (..., nodes, channels), got shape {tuple(x.shape)}")
        nodes, dtype = x.size(-2), self.weight.dtype
        if isinstance(edge_index, Adjacency):
            graph = edge_index._replace(values=edge_index.values.to(dtype))
        elif isinstance(edge_index, Tensor) and edge_index.layout != torch.strided:
            graph = of_sparse(edge_index, dtype)
        else:
            check_edges(edge_index, edge_weight, nodes)
            return adjacency_of(edge_index, edge_weight, nodes, **{k: getattr(self, k) for k in FLAGS}, dtype=dtype)
        if edge_weight is not None:
            raise ValueError("expected no edge_weight beside a matrix, whose entries are the weights, got one")
        if graph.nodes != nodes:
            raise ValueError(f"expected a graph of as many nodes as the input has, {nodes}, got {graph.nodes}")
        return graph

    def _start_times(self, device: Any, dtype: torch.dtype) -> Tensor:
        if not self.per_channel:
            return torch.full((), self.start, device=device, dtype=dtype)
        pairs = self.out_channels if self.is_complex else self.out_channels // 2
        return torch.linspace(-self.start, self.start, pairs + 1, device=device, dtype=dtype)[1:]  # of one: start

    def _along_edges(self, x: Tensor, graph: Adjacency, sign: int) -> Tensor:
        """``exp(i sign t A) x``, of an odd number of real channels without the last one, which stays as it is."""
        self._note_reach()
        times = self._start_times(x.device, self.weight.dtype) if self.time is None else self.time
        real = torch.view_as_real(x).flatten(-2) if x.is_complex() else x
        real = real.to(self.weight.dtype)
        tol = torch.finfo(real.dtype).eps if self.tol is None else self.tol
        paired = real[..., : real.size(-1) // 2 * 2]
        y = graph_exponential(graph, paired, sign * times, tol, abs(self.start) if self.reach is None else self.reach)
        y = torch.cat([y, real[..., paired.size(-1) :]], dim=-1) if real.size(-1) % 2 else y
        return torch.view_as_complex(y.unflatten(-1, (-1, 2))) if x.is_complex() else y.to(x.dtype)

    def _note_reach(self) -> None:
        """Reads the largest modulus of a time, where that can be, for where it cannot."""
        if self.time is None or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        times = unwrapped(self.time)
        if not times.is_meta:
            self.reach = float(times.detach().abs().amax()) if times.numel() else 0.0

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._note_reach()

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}"]
        parts += [] if self.bias is not None else ["bias=False"]
        parts += ["complex=True"] if self.is_complex else []
        shown = {"start": 1.0, "per_channel": False, "tol": None, **FLAGS}
        given = {name: getattr(self, name) for name, default in shown.items() if getattr(self, name) != default}
        parts += [f"{'time' if name == 'start' else name}={value}" for name, value in given.items()]
        parts += [] if self.time is None else ["learn_time=True"]
        return ", ".join(parts + self.extra_repr_of_rule("haar"))
