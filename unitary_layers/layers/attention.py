"""Attention of many heads with unitary projections, in the place of ``nn.MultiheadAttention``."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from ..linalg.check import check_dense
from ..projunn.rule import UpdateRule
from .base.forward import value_in_use, watch_own
from .base.inputs import as_size
from .base.module import UnitaryModule
from .born import multi_head_born_forward
from .linear import UnitaryLinear

SCORES = ("softmax", "born")

# Note [Projections of attention]
# torch keeps the matrices of queries, keys and values on top of each other, as one parameter (3 E, E), and its encoder
# reads that parameter by name in evaluation. So it has the same name and shape here, but stands for three orthogonal
# matrices (E, E): one tall matrix of 3 E orthonormal columns would let a projection vanish as long as the other two
# make up for it. The heads are rows of a projection; with E = heads * head_dim each is a projection with orthonormal
# rows of its own.


class UnitaryMultiheadAttention(UnitaryModule):
    r"""Multi-head attention whose projections are orthogonal matrices, in the place of ``nn.MultiheadAttention``.

    It takes the same arguments and inputs, and has the same parameter names and shapes. With the same weights it
    returns the same, so it can stand as ``self_attn`` in ``nn.TransformerEncoderLayer``. The output projection is a
    :class:`UnitaryLinear`. Attention as a whole is no isometry.

    Without biases a logit is bounded without a norm of queries and keys: for the query x_i and the key x_j the
    absolute values of the logits of all heads have a sum of at most ``|x_i| |x_j| / sqrt(E / num_heads)``.

    With ``score="born"`` the weights are not the softmax of the logits but the squares of the inner products of query
    and keys, divided by their sum; see Note [Born scores]. Source of orthogonal attention: E. A. Cherrat et al.,
    "Quantum vision transformers", arXiv 2209.08167.

    A state dict of ``nn.MultiheadAttention`` loads, and gives the orthogonal matrices nearest to its weights.

    Args:
        embed_dim: features E of queries and outputs.
        num_heads: heads, a divisor of ``embed_dim``.
        dropout: probability with which an attention weight is dropped in training.
        bias: whether the projections have biases, which start at zero.
        add_bias_kv: whether a learnt key and value is appended to the sequence.
        add_zero_attn: whether a key and value of zeros is appended.
        kdim: features of keys, ``embed_dim`` if None.
        vdim: features of values, ``embed_dim`` if None.
        batch_first: whether the batch comes before the sequence.
        device: of the parameters.
        dtype: real floating point type.
        update: how the projections move.
        init: how they start: "haar", "identity", "henaff", "cayley", "timescales" or a filler.
        gradient: "dense", and no other.
        score: what makes weights of the inner products of queries and keys: "softmax", or "born", their squares. Masks
            are the same for both. A query that is orthogonal to all keys, or whose keys are all masked, then gets
            weights of zero. ``add_zero_attn`` does not go with it, for a key of zeros gets no weight.

    Inputs:
        query, key, value: ``(L, b, E)``, ``(S, b, kdim)``, ``(S, b, vdim)``, batch first if so said, or without b.
        key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal: as of ``nn.MultiheadAttention``.

    Outputs:
        The output in the shape of the query, and the attention weights ``(b, L, S)`` or None.

    Attributes:
        in_proj_weight: the projections of queries, keys and values ``(3 E, E)``; None with a ``kdim`` or ``vdim`` of
            its own. See Note [Projections of attention].
        q_proj_weight: in that case the projection of queries ``(E, E)``, else None.
        k_proj_weight: likewise that of keys ``(E, kdim)``, else None.
        v_proj_weight: likewise that of values ``(E, vdim)``, else None.
        in_proj_bias: ``(3 E,)`` or None.
        out_proj: a :class:`UnitaryLinear` of E features.

    Raises:
        ValueError: for an option out of range.

    Example:
        >>> attention = UnitaryMultiheadAttention(16, 4, batch_first=True)
        >>> x = torch.randn(2, 5, 16)
        >>> attention(x, x, x)[0].square().sum().backward()
        >>> attention.projunn_step()
    """

    in_proj_weight: Tensor | None
    in_proj_bias: Tensor | None
    bias_k: Tensor | None
    bias_v: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        update: UpdateRule = UpdateRule(),  # noqa: B008 (a frozen value)
        init: str | Callable[..., Tensor] = "haar",
        gradient: str = "dense",
        score: str = "softmax",
    ) -> None:
        super().__init__(update, init, dtype, gradient)
        self._check(embed_dim, num_heads, dropout)
        if score not in SCORES or (score == "born" and add_zero_attn):
            got = f"got {score!r} and add_zero_attn={add_zero_attn}"
            raise ValueError(f'expected score to be one of {SCORES}, "born" without add_zero_attn, {got}')
        self.score = score
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.kdim = embed_dim if kdim is None else as_size("kdim", kdim)
        self.vdim = embed_dim if vdim is None else as_size("vdim", vdim)
        self.dropout, self.batch_first, self.add_zero_attn = float(dropout), batch_first, add_zero_attn
        self.head_dim = embed_dim // num_heads
        self._create(bias, add_bias_kv, {"device": device, "dtype": dtype}, {"update": update, "init": init})
        # Whether torch's encoder may read the weights in evaluation, and apply softmax to them.
        self._qkv_same_embed_dim = self.in_proj_weight is not None and score == "softmax"
        self.reset_parameters()

    def _check(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        if as_size("embed_dim", embed_dim) % as_size("num_heads", num_heads):
            raise ValueError(f"expected num_heads to divide embed_dim, got {embed_dim} and num_heads={num_heads}")
        if self.is_complex:
            raise ValueError("expected a real dtype, got a complex one: attention weighs by real numbers")
        if not isinstance(dropout, (int, float)) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
            raise ValueError(f"expected dropout to be a probability in [0, 1], got {dropout!r}")
        if self.gradient == "factored":
            raise ValueError('expected gradient="dense": torch applies the three projections at once; got "factored"')

    def _create(self, bias: bool, add_bias_kv: bool, dd: dict[str, Any], options: dict[str, Any]) -> None:
        e, packed = self.embed_dim, self.kdim == self.vdim == self.embed_dim
        for name, features in (("q_proj_weight", e), ("k_proj_weight", self.kdim), ("v_proj_weight", self.vdim)):
            if packed:
                self.register_parameter(name, None)
            else:
                self.register_unitary(name, (e, features), **dd)
        if packed:
            self.register_unitary("in_proj_weight", (3 * e, e), **dd, unfolded=(3, e, e))
        else:
            self.register_parameter("in_proj_weight", None)
        self.register_parameter("in_proj_bias", self.new_parameter((3 * e,), **dd) if bias else None)
        self.out_proj = UnitaryLinear(e, e, bias=bias, **dd, **options)
        for name in ("bias_k", "bias_v"):
            self.register_parameter(name, self.new_parameter((1, 1, e), **dd) if add_bias_kv else None)

    def reset_parameters(self) -> None:
        """Draws the projections anew, sets their biases to zero, and draws appended keys and values as torch does."""
        self.reset_unitary()
        self.out_proj.reset_parameters()
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
        for appended in (self.bias_k, self.bias_v):
            if appended is not None:
                nn.init.xavier_normal_(appended)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if isinstance(query, Proxy):
            others = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
            return self.recorded(query, key, value, *others)
        for layer in (self, self.out_proj):  # which torch applies by its weight
            watch_own(layer)
        _check_inputs(self, query=query, key=key, value=value)
        turned = self.batch_first and query.dim() == 3
        if turned:  # once where they are one tensor: torch then projects it once
            moved = {id(x): x.transpose(0, 1) for x in (query, key, value)}
            query, key, value = moved[id(query)], moved[id(key)], moved[id(value)]
        packed = None if self.in_proj_weight is None else value_in_use(self, "in_proj_weight", query)
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        options: dict[str, Any]
        options = {} if packed is not None else {name: value_in_use(self, name, query) for name in names}
        options |= {"use_separate_proj_weight": packed is None, "training": self.training, "is_causal": is_causal}
        options |= {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask}
        options |= {"need_weights": need_weights, "average_attn_weights": average_attn_weights}
        what = (query, key, value, self.embed_dim, self.num_heads, packed, self.in_proj_bias)
        appended = (self.bias_k, self.bias_v, self.add_zero_attn, self.dropout)
        out_proj = (_out_weight(self.out_proj, query), self.out_proj.bias)
        attend = F.multi_head_attention_forward if self.score == "softmax" else multi_head_born_forward
        output, weights = attend(*what, *appended, *out_proj, **options)
        return output.transpose(0, 1) if turned else output, weights

    def merge_masks(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor
    ) -> tuple[Tensor | None, int | None]:
        """Joins the two masks into one ``(b, num_heads, L, L)``, as torch's encoder asks for in evaluation."""
        return nn.MultiheadAttention.merge_masks(self, attn_mask, key_padding_mask, query)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        shown = {"dropout": 0.0, "add_zero_attn": False, "batch_first": False}
        parts = [f"{k}={getattr(self, k)!r}" for k, default in shown.items() if getattr(self, k) != default]
        parts += [] if self.in_proj_weight is not None else [f"kdim={self.kdim}, vdim={self.vdim}"]
        parts += [] if self.in_proj_bias is not None else ["bias=False"]
        parts += [] if self.bias_k is None else ["add_bias_kv=True"]
        parts += [] if self.score == "softmax" else [f"score={self.score!r}"]
        return ", ".join([f"{self.embed_dim}, {self.num_heads}", *parts, *self.extra_repr_of_rule("haar")])


# Functions and not methods, which a scripted layer has no more when it runs its forward in Python.
def _out_weight(layer: nn.Module, like: Tensor) -> Tensor:
    """The output projection; a user may have put torch's own in its place."""
    return layer.weight if isinstance(layer, nn.Linear) else value_in_use(layer, "weight", like)  # type: ignore[arg-type]


def _check_inputs(layer: UnitaryMultiheadAttention, **inputs: Tensor) -> None:
    for (name, x), size in zip(inputs.items(), (layer.embed_dim, layer.kdim, layer.vdim), strict=True):
        check_dense(f"{name} of UnitaryMultiheadAttention", x)
        if x.dim() not in (2, 3) or x.size(-1) != size:
            raise ValueError(f"expected {name} of 2 or 3 dimensions, the last of size {size}, got {tuple(x.shape)}")
