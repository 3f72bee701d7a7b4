"""Attention whose weights are squared inner products of queries and keys, by the Born rule, and not their softmax."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .base.inputs import HALF

# Note [Born scores]
# Born's rule makes probabilities of amplitudes: of the inner products s_j of a query with all keys the weights are
# |s_j|^2 / sum |s|^2. They do not change when query or keys are scaled, so they need no temperature, and a key that is
# orthogonal to the query gets no weight at all. A mask that softmax adds to the logits is a factor exp(mask) here, as
# it is there: log weights are 2 log |s| + mask before they are normalised. The products of a query are divided by the
# largest before they are squared, so that the squares neither overflow nor vanish. What has no largest, since all
# products are zero or all keys are masked, gets weights of zero, and finite gradients.


def born_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """The weights of keys for each query; see Note [Born scores].

    Args:
        q: queries ``(..., L, d)``.
        k: keys ``(..., S, d)``.
        mask: logarithms of factors of the weights, broadcast to ``(..., L, S)``; minus infinity masks a key.

    Returns:
        ``(..., L, S)``, each row of sum 1 or all zero; of half precision inputs in float32.
    """
    products = q @ k.mT
    products = products.float() if products.dtype in HALF else products
    if products.size(-1) == 0:  # no keys, of which none is the largest
        return products
    if mask is not None:
        most = mask.detach().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(mask.dtype).min)
        products = products * ((mask - most) / 2).exp()
    largest = products.detach().abs().amax(dim=-1, keepdim=True)
    squares = (products / largest.masked_fill(largest == 0, 1)).square()
    return squares / squares.sum(dim=-1, keepdim=True).clamp(min=1)  # which one of them is, unless all are zero


def multi_head_born_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    *,
    training: bool,
    key_padding_mask: Tensor | None,
    need_weights: bool,
    attn_mask: Tensor | None,
    use_separate_proj_weight: bool,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    average_attn_weights: bool,
    is_causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attention by :func:`born_weights`, with arguments and results of torch's ``multi_head_attention_forward``.

    ``add_zero_attn`` has no effect, for a key of zeros gets no weight, and neither has ``is_causal``, a hint.

    Raises:
        ValueError: for masks, keys or values that do not fit, or ``is_causal`` without ``attn_mask``.
    """
    if is_causal and attn_mask is None:
        raise ValueError("expected attn_mask with is_causal, which is a hint that the mask is causal")
    is_batched = query.dim() == 3
    if not is_batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    if key.shape[:2] != value.shape[:2] or key.size(1) != query.size(1):
        raise ValueError(
            "expected queries, keys and values of one batch, and as many keys as values, got (length, batch) "
            f"{tuple(query.shape[:2])}, {tuple(key.shape[:2])} and {tuple(value.shape[:2])}"
        )
    size = (query.size(1), num_heads, query.size(0), key.size(0))
    mask = _merged(attn_mask, key_padding_mask, size, value)
    separate = [weight for weight in (q_proj_weight, k_proj_weight, v_proj_weight) if weight is not None]
    weights = separate if in_proj_weight is None else in_proj_weight.chunk(3)
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    if bias_k is not None and bias_v is not None:
        k, v = (torch.cat([x, last.to(x.dtype).expand(1, x.size(1), -1)]) for x, last in ((k, bias_k), (v, bias_v)))
        mask = None if mask is None else F.pad(mask, (0, 1))
    q, k, v = (x.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3) for x in (q, k, v))  # (b, heads, length, d)
    shares = F.dropout(born_weights(q, k, mask).to(q.dtype), dropout_p, training)
    output = F.linear((shares @ v).permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    shares = shares.mean(dim=1) if average_attn_weights else shares
    if not is_batched:
        output, shares = output.squeeze(1), shares.squeeze(0)
    return output, shares if need_weights else None


def _merged(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, size: tuple[int, int, int, int], like: Tensor
) -> Tensor | None:
    """Both masks as one of logarithms that broadcasts to ``size``, batch, heads, queries and keys."""
    batch, heads, queries, keys = size
    merged = None
    if attn_mask is not None:
        shapes = ((queries, keys), (batch * heads, queries, keys))
        merged = _logarithms("attn_mask", attn_mask, shapes, like)
        merged = merged.unflatten(0, (batch, heads)) if merged.dim() == 3 else merged
    if key_padding_mask is not None:
        padding = _logarithms("key_padding_mask", key_padding_mask, ((batch, keys),), like)[:, None, None]
        merged = padding if merged is None else merged + padding
    return merged


def _logarithms(name: str, mask: Tensor, shapes: tuple[tuple[int, ...], ...], like: Tensor) -> Tensor:
    if tuple(mask.shape) not in shapes or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise ValueError(
            f"expected {name} of bool or floating point, of shape {' or '.join(map(str, shapes))}, got {mask.dtype} "
            f"{tuple(mask.shape)}"
        )
    dtype = torch.promote_types(like.dtype, torch.float32)
    if mask.is_floating_point():
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -torch.inf)
