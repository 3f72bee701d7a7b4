"""Attention by orthogonal projections beside its slow twin, by softmax and by Born scores, and what both promise."""

import math

import pytest
import torch
from closeness import assert_rounding
from torch import Tensor, nn

from unitary_layers import UnitaryMultiheadAttention, UpdateRule, revert
from unitary_layers.layers.attention import SCORES
from unitary_layers.layers.born import born_weights

E, HEADS, BATCH, QUERIES, KEYS = 8, 2, 3, 4, 5
every_score = pytest.mark.parametrize("score", SCORES)


def layer_of(score: str, dtype: torch.dtype = torch.float64, **options) -> UnitaryMultiheadAttention:
    """A layer with biases that are not zero."""
    layer = UnitaryMultiheadAttention(E, HEADS, dtype=dtype, score=score, update=UpdateRule(lr=0.3), **options)
    for name, parameter in layer.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return layer


def inputs_of(layer: UnitaryMultiheadAttention) -> list[Tensor]:
    sizes = ((QUERIES, E), (KEYS, layer.kdim), (KEYS, layer.vdim))
    return [torch.randn(length, BATCH, size, dtype=torch.float64) for length, size in sizes]


def projections_of(layer: UnitaryMultiheadAttention) -> list[Tensor]:
    """The matrices of queries, keys and values."""
    if layer.in_proj_weight is not None:
        return list(layer.in_proj_weight.detach().view(3, E, E))
    return [w.detach() for w in (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)]


def slowly(layer, query, key, value, allowed, added) -> tuple[Tensor, Tensor]:
    """Attention, one number after another: outputs ``(L, b, E)`` and weights of each head ``(b, heads, L, S)``.

    ``allowed(n, i, j)`` says whether query i of sequence n may see key j, ``added(i, j)`` what is added to log weights.
    """
    biases = torch.zeros(3 * E).double() if layer.in_proj_bias is None else layer.in_proj_bias.detach()
    q, k, v = (x @ w.T + b for x, w, b in zip((query, key, value), projections_of(layer), biases.chunk(3), strict=True))
    d = E // HEADS
    heads, weights = torch.zeros(QUERIES, BATCH, E).double(), torch.zeros(BATCH, HEADS, QUERIES, KEYS).double()
    for n in range(BATCH):
        for h in range(HEADS):
            part = slice(h * d, (h + 1) * d)
            for i in range(QUERIES):
                for j in range(KEYS):
                    product = float(q[i, n, part] @ k[j, n, part])
                    one = math.exp(product / math.sqrt(d)) if layer.score == "softmax" else product**2
                    weights[n, h, i, j] = one * math.exp(added(i, j)) if allowed(n, i, j) else 0.0
                weights[n, h, i] /= weights[n, h, i].sum()
                heads[i, n, part] = sum(weights[n, h, i, j] * v[j, n, part] for j in range(KEYS))
    return heads @ layer.out_proj.weight.detach().T + layer.out_proj.bias.detach(), weights


@every_score
@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 11}], ids=["packed", "apart"])
@pytest.mark.parametrize("masks", ["none", "causal", "added", "of heads", "padding", "both"])
def test_it_is_the_sum_over_keys(score, sizes, masks):
    layer = layer_of(score, **sizes)
    inputs, options = inputs_of(layer), {}
    causal = torch.ones(QUERIES, KEYS).triu(1).bool()
    padded = torch.arange(KEYS) >= torch.tensor([5, 3, 4])[:, None]
    slope = torch.randn(QUERIES, KEYS, dtype=torch.float64)
    if masks in ("causal", "both"):
        options["attn_mask"] = causal
    if masks == "of heads":
        options["attn_mask"] = causal.expand(BATCH * HEADS, -1, -1)
    if masks == "added":
        options["attn_mask"] = slope
    if masks in ("padding", "both"):
        options["key_padding_mask"] = padded
    is_causal, is_padded = masks in ("causal", "both", "of heads"), masks in ("padding", "both")
    expected, weights = slowly(
        layer,
        *inputs,
        allowed=lambda n, i, j: not (is_causal and causal[i, j]) and not (is_padded and padded[n, j]),
        added=lambda i, j: float(slope[i, j]) if masks == "added" else 0.0,
    )
    y, mean = layer(*inputs, **options)
    assert_rounding(y, expected, n=10 * E)
    assert_rounding(mean, weights.mean(1), n=10 * E)
    y, none = layer(*inputs, **options, need_weights=False)
    assert none is None
    assert_rounding(y, expected, n=10 * E)
    assert_rounding(layer(*inputs, **options, average_attn_weights=False)[1], weights, n=10 * E)
    if masks in ("none", "causal", "added"):  # of one sequence without a batch
        one = [x[:, 0] for x in inputs]
        y, mean = layer(*one, **options)
        assert_rounding(y, expected[:, 0], n=10 * E)
        assert_rounding(mean, weights[0].mean(0), n=10 * E)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 11}, {"kdim": 12}], ids=str)
def test_logits_are_bounded_by_the_lengths_of_the_vectors(sizes):
    """Those of all heads together, hence of each; the bound is reached; it holds after steps as before."""
    layer = UnitaryMultiheadAttention(E, HEADS, bias=False, update=UpdateRule(lr=1.0), dtype=torch.float64, **sizes)
    for trial in range(3):
        query, key, value = (x * 10.0**trial for x in inputs_of(layer))
        w_q, w_k, w_v = projections_of(layer)
        key[:QUERIES] = query @ w_q.T @ w_k  # what the query asks for
        q, k = (x.transpose(0, 1).unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (query @ w_q.T, key @ w_k.T))
        logits = (q @ k.mT / math.sqrt(E / HEADS)).abs().sum(1)
        bound = torch.einsum("ln,sn->nls", query.norm(dim=-1), key.norm(dim=-1)) / math.sqrt(E / HEADS)
        assert bool((logits <= bound * (1 + 10 * E * torch.finfo(torch.float64).eps)).all())
        if layer.kdim >= E:
            assert_rounding(logits.diagonal(dim1=1, dim2=2), bound.diagonal(dim1=1, dim2=2), n=10 * E)
        isometries = [(query, w_q), (torch.randn(5, E).double(), layer.out_proj.weight.detach())]
        isometries += [(value, w_v)] if layer.vdim <= E else []
        for x, w in isometries:
            assert_rounding((x @ w.T).norm(dim=-1), x.norm(dim=-1), n=10 * E)
        layer(query, key, value)[0].square().mean().backward()
        layer.projunn_step()


@every_score
def test_weights_and_outputs_have_the_dtypes_of_torchs(score):
    ours, plain = UnitaryMultiheadAttention(E, HEADS, score=score), nn.MultiheadAttention(E, HEADS)
    x = torch.randn(QUERIES, BATCH, E)
    for half in (False, True):
        for autocast in (False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                found, expected = (
                    [t.dtype for t in (m.bfloat16() if half else m.float())(*(x.bfloat16() if half else x,) * 3)]
                    for m in (ours, plain)
                )
            assert found == expected, (half, autocast)


def test_born_weights_know_no_scale_and_have_their_gradients():
    q, k = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(5, 3, dtype=torch.float64)
    k.requires_grad_()
    mask = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(born_weights, (q, k, mask))
    expected = born_weights(q, k)
    for scale in (1e-200, 1e-30, 1e30, 1e200):  # where squares vanish and overflow
        assert_rounding(born_weights(q * scale, k), expected, n=10)
    assert_rounding(born_weights(q, k, mask + 1e4), born_weights(q, k, mask), n=1e4)
    assert_rounding(born_weights(-q, k), expected, n=1)


@pytest.mark.parametrize("what", ["zero queries", "all masked", "minus a billion"])
def test_a_query_without_a_key_gets_zero_and_finite_gradients(what):
    layer = layer_of("born", bias=False)
    inputs = [x.requires_grad_() for x in inputs_of(layer)]
    options = {}
    if what == "zero queries":
        inputs[0].data[1] = 0
        rows = (slice(None), 1)
    else:
        mask = torch.zeros(QUERIES, KEYS, dtype=torch.float64)
        mask[1] = -torch.inf if what == "all masked" else -1e9
        options["attn_mask"] = mask
        rows = (slice(None), 1)
    y, weights = layer(*inputs, **options)
    y.sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in (*inputs, *layer.parameters()))
    if what == "minus a billion":  # for all alike, which is no mask
        assert_rounding(weights, layer(*inputs)[1], n=10 * E)
    else:
        assert bool((weights[rows] == 0).all())
        assert bool((y[1] == 0).all())


def test_no_keys_are_no_keys():
    layer = layer_of("born")
    query, key, value = inputs_of(layer)
    y, weights = layer(query, key[:0], value[:0], attn_mask=torch.zeros(QUERIES, 0).bool())
    assert weights.shape == (BATCH, QUERIES, 0)
    assert torch.equal(y, layer.out_proj.bias.expand_as(y))


def test_dropout_takes_weights_and_appended_keys_are_seen():
    layer = layer_of("born", dropout=0.5, add_bias_kv=True)
    inputs = inputs_of(layer)
    _, weights = layer(*inputs, average_attn_weights=False, key_padding_mask=torch.zeros(BATCH, KEYS).bool())
    assert weights.shape == (BATCH, HEADS, QUERIES, KEYS + 1)
    assert 0.2 < float((weights == 0).double().mean()) < 0.8
    _, weights = layer.eval()(*inputs, key_padding_mask=torch.ones(BATCH, KEYS).bool())
    assert_rounding(weights[..., -1], torch.ones(BATCH, QUERIES).double(), n=10)


def test_torchs_encoder_asks_the_layer_in_evaluation():
    """Its fast path would read the weights, and apply softmax."""
    encoder = nn.TransformerEncoderLayer(E, HEADS, 16, dropout=0.0, batch_first=True)
    encoder.self_attn = UnitaryMultiheadAttention(E, HEADS, batch_first=True, score="born")
    x = torch.randn(BATCH, KEYS, E)
    expected = encoder(x)
    with torch.no_grad():
        assert torch.equal(encoder.eval()(x), expected)


def test_what_cannot_be_is_refused():
    for options in ({"score": "cosine"}, {"score": "born", "add_zero_attn": True}):
        with pytest.raises(ValueError, match=r"one of \('softmax', 'born'\), \"born\" without add_zero_attn, got"):
            UnitaryMultiheadAttention(E, HEADS, **options)
    layer = layer_of("born")
    query, key, value = inputs_of(layer)
    with pytest.raises(ValueError, match=r"attn_mask of bool or floating point, of shape .*got torch.bool"):
        layer(query, key, value, attn_mask=torch.ones(2, 2).bool())
    with pytest.raises(ValueError, match=r"key_padding_mask of bool or floating point, .*got torch.int64"):
        layer(query, key, value, key_padding_mask=torch.ones(BATCH, KEYS).long())
    with pytest.raises(ValueError, match="attn_mask with is_causal"):
        layer(query, key, value, is_causal=True)
    with pytest.raises(ValueError, match="as many keys as values"):
        layer(query, key[:2], value)
    model = nn.Sequential(layer)
    report = revert(model)
    assert model[0] is layer
    assert isinstance(layer, UnitaryMultiheadAttention)
    assert [row.note for row in report if row.module == "0"] == ["torch's has no score 'born'"]
    assert "score='born'" in repr(layer)
