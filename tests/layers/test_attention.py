"""UnitaryMultiheadAttention beside nn.MultiheadAttention, alone and in torch's encoder with its fast path."""

import inspect
import warnings

import pytest
import torch
from closeness import assert_rounding
from torch import nn

from unitary_layers import UnitaryLinear, UnitaryMultiheadAttention, UpdateRule, nearest_unitary, unitarity_error
from unitary_layers.testing import assert_unitary
from unitary_layers.training import unitary_weights

E, HEADS, BATCH, LENGTH = 8, 2, 3, 5
OPTIONS = (
    {},
    {"bias": False},
    {"add_bias_kv": True, "add_zero_attn": True},
    {"kdim": 6, "vdim": 11},
    {"kdim": 6, "batch_first": True},
    {"batch_first": True},
)


def pair(**options) -> tuple[UnitaryMultiheadAttention, nn.MultiheadAttention]:
    """A layer of ours and torch's with the same weights."""
    ours, plain = UnitaryMultiheadAttention(E, HEADS, **options), nn.MultiheadAttention(E, HEADS, **options)
    missing, unexpected = plain.load_state_dict(ours.state_dict(), strict=False)
    assert missing == []
    assert all(name.endswith("_count") for name in unexpected)
    return ours, plain


def inputs(module: nn.Module, batched: bool) -> list[torch.Tensor]:
    shape = (BATCH, LENGTH) if module.batch_first else (LENGTH, BATCH)
    sizes = (module.embed_dim, module.kdim, module.vdim)
    return [torch.randn(*(shape if batched else (LENGTH,)), size) for size in sizes]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
def test_returns_what_torch_returns(options, batched):
    ours, plain = pair(**options)
    args = inputs(ours, batched)
    mask = torch.ones(LENGTH, LENGTH).triu(1).bool()
    for asked in ({}, {"need_weights": False, "attn_mask": mask}, {"average_attn_weights": False, "attn_mask": mask}):
        for y, expected in zip(ours(*args, **asked), plain(*args, **asked), strict=True):
            assert (y is None) is (expected is None)
            if y is not None:
                assert_rounding(y, expected, n=E)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_projection_is_unitary_and_learns(options):
    layer = UnitaryMultiheadAttention(E, HEADS, update=UpdateRule(lr=0.3), **options)
    shapes = [tuple(weight.matrix.shape) for weight in unitary_weights(layer)]
    packed = [(3, E, E), (E, E)]
    assert shapes == (packed if layer._qkv_same_embed_dim else [(E, E), (E, layer.kdim), (E, layer.vdim), (E, E)])
    before = [weight.matrix.clone() for weight in unitary_weights(layer)]
    layer(*inputs(layer, batched=True))[0].square().mean().backward()
    layer.projunn_step()
    assert_unitary(layer)
    for weight, matrix in zip(unitary_weights(layer), before, strict=True):
        moved = torch.linalg.matrix_norm(weight.matrix - matrix)
        assert bool((moved > 0).all()), weight.name  # of three blocks each


def test_a_state_dict_of_torch_gives_the_nearest_projections():
    ours, plain = pair()
    nn.init.xavier_uniform_(plain.in_proj_weight)
    with pytest.warns(UserWarning, match="nearest unitary"):
        ours.load_state_dict(plain.state_dict())
    expected = nearest_unitary(plain.in_proj_weight.detach().view(3, E, E))
    assert_rounding(ours.in_proj_weight.view(3, E, E), expected, n=E)


@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_encoder_is_the_same_in_training_and_evaluation(norm_first):
    options = {"dropout": 0.0, "batch_first": True, "norm_first": norm_first}
    layer = nn.TransformerEncoderLayer(E, HEADS, dim_feedforward=16, **options)
    layer.self_attn = UnitaryMultiheadAttention(E, HEADS, batch_first=True)
    layer.linear1, layer.linear2 = UnitaryLinear(E, 16), UnitaryLinear(16, E)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
    x = torch.randn(BATCH, LENGTH, E)
    padding = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    padding[1, -2:] = True
    expected = encoder(x, src_key_padding_mask=padding)
    encoder.eval()
    assert_rounding(encoder(x, src_key_padding_mask=padding), expected, n=4 * E)
    with (
        torch.no_grad(),
        warnings.catch_warnings(),
    ):  # torch's fast path reads the weights alone
        warnings.filterwarnings("ignore", message=".*nested tensors is in prototype stage")
        y = encoder(x, src_key_padding_mask=padding)
    assert_rounding(y[~padding], expected[~padding], n=4 * E)


def test_half_precision_is_that_of_the_activations():
    layer = UnitaryMultiheadAttention(E, HEADS).bfloat16()
    x = torch.randn(LENGTH, BATCH, E, dtype=torch.bfloat16)
    y = layer(x, x, x)[0]
    assert y.dtype == torch.bfloat16
    assert layer.in_proj_weight.dtype == torch.float32
    assert unitarity_error(layer.in_proj_weight.detach().view(3, E, E)).max() < 1e-5
    x = x.float()
    assert_rounding(layer.float()(x, x, x)[0].bfloat16(), y, n=E)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="num_heads to divide"):
        UnitaryMultiheadAttention(8, 3)
    with pytest.raises(ValueError, match="real dtype"):
        UnitaryMultiheadAttention(8, 2, dtype=torch.complex64)
    with pytest.raises(ValueError, match="at once"):
        UnitaryMultiheadAttention(8, 2, gradient="factored")
    x, wrong = torch.randn(3, 1, 8), torch.randn(3, 1, 7)
    with pytest.raises(ValueError, match="expected key of 2 or 3 dimensions, the last of size 8"):
        UnitaryMultiheadAttention(8, 2)(x, wrong, x)


@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_arguments_have_the_names_order_and_defaults_of_torchs(method):
    found, expected = (
        [(p.name, p.kind, p.default) for p in inspect.signature(getattr(cls, method)).parameters.values()]
        for cls in (UnitaryMultiheadAttention, nn.MultiheadAttention)
    )
    assert found[: len(expected)] == expected
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for _, kind, _ in found[len(expected) :])
