"""Layers of torch become unitary in place, and torch's own again: what is kept, what is left alone, and errors."""

import copy
import gc
import math
import pickle
import warnings
import weakref

import pytest
import torch
from closeness import assert_rounding
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import orthogonal, weight_norm

import unitary_layers
from unitary_layers import (
    OrthogonalConv2d,
    UnitaryLinear,
    UnitaryModule,
    UpdateRule,
    attach,
    convert,
    nearest_unitary,
    orthogonality_bound,
    revert,
)
from unitary_layers.conversion.kinds import BY_PLAIN
from unitary_layers.testing import assert_unitary
from unitary_layers.training import unitary_weights
from unitary_layers.training.owners import weights_of

N = 8
IMAGE = (3, 4, 9, 10)
# A layer of torch, the shape of its input, and the name of the class that it becomes.
LAYERS = {
    "linear": (lambda **dd: nn.Linear(N, 5, **dd), (3, N), "UnitaryLinear"),
    "linear-tall": (lambda **dd: nn.Linear(5, N, bias=False, **dd), (3, 5), "UnitaryLinear"),
    "conv1d": (
        lambda **dd: nn.Conv1d(4, 6, 3, padding="same", padding_mode="reflect", **dd),
        (3, 4, 9),
        "StiefelConv1d",
    ),
    "conv2d": (lambda **dd: nn.Conv2d(4, 6, 3, 2, 1, groups=2, **dd), IMAGE, "StiefelConv2d"),
    "conv2d-of-pixels": (lambda **dd: nn.Conv2d(4, 6, 1, stride=2, bias=False, **dd), IMAGE, "StiefelConv2d"),
    "conv3d": (lambda **dd: nn.Conv3d(2, 3, 2, dilation=2, **dd), (1, 2, 5, 5, 5), "StiefelConv3d"),
    "transposed-1d": (lambda **dd: nn.ConvTranspose1d(4, 6, 3, stride=2, **dd), (3, 4, 9), "StiefelConvTranspose1d"),
    "transposed-2d": (
        lambda **dd: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2, **dd),
        IMAGE,
        "StiefelConvTranspose2d",
    ),
    "transposed-3d": (lambda **dd: nn.ConvTranspose3d(2, 3, 2, **dd), (1, 2, 3, 3, 3), "StiefelConvTranspose3d"),
    "rnn": (
        lambda **dd: nn.RNN(5, N, 2, "relu", batch_first=True, dropout=0.1, bidirectional=True, **dd),
        (3, 4, 5),
        "UnitaryRNN",
    ),
    "rnn-dropout-for-nothing": (lambda **dd: nn.RNN(5, N, dropout=0.0, bias=False, **dd), (3, 4, 5), "UnitaryRNN"),
    "cell": (lambda **dd: nn.RNNCell(5, N, nonlinearity="relu", **dd), (3, 5), "UnitaryRNNCell"),
}
every_layer = pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS)


class Attention(nn.Module):
    """Attention as a layer of one input, of which torch's class has three."""

    def __init__(self, **options):
        super().__init__()
        self.attn = nn.MultiheadAttention(N, 2, **options)

    def forward(self, x: Tensor) -> Tensor:
        sizes = (self.attn.kdim, self.attn.vdim)
        return self.attn(x, *(x if n == N else x[..., :n] for n in sizes))[0]


def out(layer: nn.Module, x: Tensor) -> Tensor:
    y = layer(x, layer(x)) if "RNNCell" in type(layer).__name__ else layer(x)  # whose matrix counts from then on
    return torch.cat([part.flatten() for part in y]) if isinstance(y, tuple) else y


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@every_layer
def test_there_and_back(case):
    """The nearest unitary weights, in the layer that torch's own class with these weights is."""
    make, shape, name = case
    model, x = nn.Sequential(make()).eval(), torch.randn(shape)
    parameters, before = list(model.parameters()), state(model)
    plain_repr = repr(model)
    (row,) = convert(model)
    assert (row.module, row.before, row.after) == ("0", plain_repr.split(": ")[1].split("(")[0], name)
    assert type(model[0]) is getattr(unitary_layers, name)
    assert_unitary(model)
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    twin = nn.Sequential(type(model[0])(**BY_PLAIN[type(make())].arguments(make())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not unitary, and by how much
        twin.load_state_dict(before)
    assert_rounding(out(model, x), out(twin.eval(), x), n=10 * N)
    moved = [
        (p - before[k]).norm() / before[k].norm() for k, p in model.named_parameters() if not torch.equal(p, before[k])
    ]
    assert row.moved == pytest.approx(moved[0].item(), rel=1e-4) if len(moved) == 1 else row.moved > 0
    y = out(model, x)
    (row,) = revert(model)
    assert (row.before, row.after) == (name, type(model[0]).__name__)
    assert repr(model) == plain_repr
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert_rounding(out(model, x), y, n=10 * N)
    fresh = nn.Sequential(make()).eval()
    fresh.load_state_dict(model.state_dict())  # with no names missing or unexpected
    assert torch.equal(out(fresh, x), out(model, x))
    assert vars(model[0]).keys() == vars(fresh[0]).keys()


@every_layer
def test_a_converted_layer_learns(case):
    make, shape, _ = case
    model, x = nn.Sequential(make()), torch.randn(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)  # built before
    convert(model, update=UpdateRule(lr=0.1))
    attach(model, optimizer)
    before = [weight.matrix.clone() for weight in unitary_weights(model)]
    for _ in range(3):
        out(model[0], x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_unitary(model)
    assert all(not torch.equal(w.matrix, b) for w, b in zip(unitary_weights(model), before, strict=True))
    assert all(int(weight.count) == 3 for weight in unitary_weights(model))
    fresh = nn.Sequential(make())
    convert(fresh, start="init")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh.load_state_dict(model.state_dict())
    assert torch.equal(out(fresh[0].eval(), x), out(model[0].eval(), x))


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 5, "vdim": 3}, {"add_bias_kv": True}], ids=str)
def test_attention(options):
    model, x = Attention(**options), torch.randn(4, 3, N)
    plain_repr, parameters = repr(model), list(model.parameters())
    rows = convert(model)
    assert [row.after for row in rows] == ["UnitaryMultiheadAttention", "UnitaryLinear"]
    assert_unitary(model)
    y = model(x)
    revert(model)
    assert repr(model) == plain_repr
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert_rounding(model(x), y, n=10 * N)


@pytest.mark.parametrize("only", ["attn.out_proj", "attn"])
def test_attention_by_halves(only):
    model, x = Attention(batch_first=True), torch.randn(4, 3, N)
    convert(model, include=only, exclude=() if only == "attn.out_proj" else "attn.out_proj")
    assert isinstance(model.attn, UnitaryModule) is (only == "attn")
    assert isinstance(model.attn.out_proj, UnitaryModule) is (only == "attn.out_proj")
    y = model(x)
    with torch.no_grad():
        assert_rounding(model.eval()(x), y, n=10 * N)
    model(x).square().sum().backward()
    unitary_layers.projunn_step(model)
    assert_unitary(model)


def test_names_patterns_and_what_is_left_alone():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    model = nn.ModuleDict(
        {
            "stem": nn.Linear(N, N),
            "body": nn.Sequential(nn.Linear(N, N), nn.Sequential(nn.Linear(N, N))),
            "own": Own(N, N),
            "lstm": nn.LSTM(N, N),
            "tok": nn.Embedding(5, N),
            "norm": nn.LayerNorm(N),
            "empty": nn.Linear(N, N),
        }
    )
    model["empty"].forward = lambda x: x
    report = convert(model, include=["body", "own", "lstm", "tok", "empty"], exclude="body.1*")
    assert {row.module: row.after or row.note for row in report} == {
        "stem": "not included",
        "body.0": "UnitaryLinear",
        "body.1.0": "excluded",
        "own": "a subclass of Linear, which may do something else",
        "lstm": "no unitary layer takes its place",
        "tok": "no unitary layer takes its place",
        "empty": "its forward was replaced",
    }
    assert [row.module for row in report.converted] == ["body.0"]
    assert len(report.left) == 6
    assert report[0].module == "stem"
    lines = str(report).splitlines()
    assert lines[0].split() == ["module", "from", "to", "|W", "-", "W'|", "/", "|W|"]
    assert lines[2].split()[:3] == ["body.0", "Linear", "UnitaryLinear"]
    assert lines[-1] == "1 of 7 layers converted"
    assert len(convert(model, include=["stem"])) == 6  # what is converted already is no row


def test_the_model_itself_may_be_a_layer():
    layer = nn.Linear(N, N)
    assert convert(layer)[0].module == ""
    assert type(layer) is UnitaryLinear
    revert(layer)
    assert type(layer) is nn.Linear


WRONG = (
    ({"include": [1]}, "expected patterns of names in include, got 1"),
    ({"include": ["stem"]}, "'stem', which matches none"),
    ({"exclude": "stem"}, "'stem', which matches none"),
    ({"start": "zero"}, "expected start"),
    ({"conv": "bcop"}, "expected conv"),
    ({"update": 1}, "UpdateRule"),
)


@pytest.mark.parametrize(("options", "message"), WRONG, ids=str)
def test_wrong_options_change_nothing(options, message):
    model = nn.Sequential(nn.Linear(N, N))
    before = state(model)
    with pytest.raises((ValueError, TypeError), match=message):
        convert(model, **options)
    assert same(state(model), before)
    assert type(model[0]) is nn.Linear


def test_what_is_no_module_is_refused():
    for function in (convert, revert):
        with pytest.raises(TypeError, match="expected a module, got list"):
            function([nn.Linear(N, N)])


def test_nothing_is_half_converted_after_an_error():
    model = nn.Sequential(nn.Linear(N, N), nn.Conv2d(3, 3, 3), nn.Linear(N, 2))
    model[2].weight.data[0, 0] = math.nan
    before, kinds = state(model), [type(m) for m in model]
    with pytest.raises(ValueError, match=r"NaN or infinity in 'weight' of the layer '2'"):
        convert(model)
    assert [type(m) for m in model] == kinds
    assert str(before) == str(state(model))


def test_what_a_user_has_hung_on_a_layer_is_kept():
    model = nn.Sequential(nn.Linear(N, N), nn.RNN(N, N))
    calls = []
    handles = [
        model[0].register_forward_hook(lambda *_: calls.append("after")),
        model[0].register_forward_pre_hook(lambda *_: calls.append("before")),
        model[0].register_full_backward_hook(lambda *_: calls.append("backward")),
        model[0].weight.register_hook(lambda g: calls.append("gradient")),
        model[0].register_state_dict_post_hook(lambda *_: calls.append("state")),
    ]
    model[0].tag, held = "mine", [model[0]]
    model[0].bias.requires_grad_(False)
    model[1].eval()
    model[1].weight_hh_l0.requires_grad_(False)
    convert(model)
    for expected in (UnitaryLinear, nn.Linear):
        assert held[0] is model[0]
        assert type(model[0]) is expected
        assert (model[0].tag, model[0].training, model[1].training) == ("mine", True, False)
        assert all(not child.training for child in model[1].modules())
        assert not model[0].bias.requires_grad
        assert not model[1].weight_hh_l0.requires_grad
        calls.clear()
        model[0](torch.randn(2, N, requires_grad=True)).sum().backward()
        model.state_dict()
        assert sorted(calls) == ["after", "backward", "before", "gradient", "state"]
        if expected is UnitaryLinear:
            revert(model)
    for handle in handles:
        handle.remove()
    calls.clear()
    model[0](torch.randn(2, N, requires_grad=True)).sum().backward()
    model.state_dict()
    assert calls == []


def test_an_attribute_that_the_new_layer_needs_leaves_a_layer_alone():
    model = nn.Sequential(nn.Linear(N, N))
    model[0].gradient = "mine"
    assert convert(model)[0].note == "it has an attribute 'gradient' of its own, and so has the new layer"
    assert model[0].gradient == "mine"


def test_more_than_torchs_layer_is_left_alone():
    model = nn.Sequential(nn.Linear(N, N), nn.Linear(N, N), weight_norm(nn.Linear(N, N)))
    model[0].register_buffer("mask", torch.ones(N))
    model[1].lora = nn.Linear(N, 2)
    prune.identity(pruned := nn.Linear(N, N), "weight")
    model.append(pruned)
    notes = [row.note for row in convert(model) if row.module != "1.lora"]
    assert notes == [
        "its buffers are not those of torch's layer (mask)",
        "its modules are not those of torch's layer (lora)",
        "its weight is computed by WeightNorm",
        "its parameters are not those of torch's layer (weight, weight_orig)",
    ]


@pytest.mark.parametrize("start", ["nearest", "init"])
def test_ties_are_kept(start):
    a, b = nn.Linear(N, N), nn.Linear(N, N, bias=False)
    b.weight = a.weight
    model = nn.Sequential(a, b, a)
    report = convert(model, start=start)
    assert [row.after for row in report] == ["UnitaryLinear"] * 2
    assert a.weight is b.weight
    assert len(list(unitary_weights(model))) == 1
    assert report[0].moved == report[1].moved
    assert_unitary(model)
    convert(model)
    revert(model)
    assert a.weight is b.weight


@pytest.mark.parametrize("options", [{}, {"start": "init"}], ids=str)
def test_a_tie_to_what_is_not_converted_leaves_a_layer_alone(options):
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.tok, self.head, self.other = nn.Embedding(5, N), nn.Linear(N, 5), nn.Linear(N, 5)
            self.head.weight = self.other.weight = self.tok.weight

    model = Language()
    before = state(model)
    report = convert(model, **options)
    assert report[1].note == "it shares its weight with 'tok', which stays as it is"
    assert report.converted == ()
    assert same(state(model), before)
    tied = nn.ModuleDict({"a": nn.Linear(N, N), "b": nn.Linear(N, N), "c": nn.Linear(N, N)})
    tied["a"].weight = tied["b"].weight
    report = convert(tied, exclude="a", **options)
    assert [row.note for row in report] == ["excluded", "it shares its weight with 'a', which stays as it is", ""]


def test_a_tie_of_isometries_is_kept():
    model, x = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)), torch.randn(2, 4, 5, 5)
    model[1].weight = model[0].weight
    convert(model, conv="isometry")
    assert model[0].weight is model[1].weight
    assert model[0].shifts is model[1].shifts
    y = model(x)
    revert(model)
    assert model[0].weight is model[1].weight
    assert_rounding(model(x), y, n=100)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.bfloat16, 0.2)])
def test_the_way_back_says_what_is_left_of_an_isometry(dtype, allowed):
    model = nn.Sequential(OrthogonalConv2d(4, 4, 3, padding_mode="circular"), OrthogonalConv2d(4, 4, input_size=4))
    local, full = revert(model.to(dtype))
    assert full.note == ""  # for images of one size
    stated = float(local.note.removeprefix("|sigma^2 - 1| <= "))
    assert 0.95 * orthogonality_bound(model[0].weight) <= stated <= allowed


@pytest.mark.parametrize("bits", [(4, None), (4, 2), (4, 4)])
def test_a_weight_that_two_layers_round_otherwise_stays(bits):
    model = nn.Sequential(*(UnitaryLinear(N, N, weight_bits=b) for b in bits))
    model[1].weight = model[0].weight
    x = torch.randn(3, N)
    y = model(x)
    report = revert(model)
    assert_rounding(model(x), y, n=100)
    notes = [row.note for row in report]
    shared = "it shares its weight with '{}', which does not round it alike"
    assert notes[0] == ("" if bits == (4, 4) else shared.format(1))
    assert notes[1] == (shared.format(0) if bits == (4, 2) else "")


def test_of_a_convolution_with_zeros_around_the_image_it_bounds_the_largest_singular_value_alone():
    model = nn.Sequential(OrthogonalConv2d(2, 2, 3, padding_mode="zeros", bias=False))
    (change,) = revert(model)
    responses = model(torch.eye(32).view(32, 2, 4, 4)).detach().flatten(1)
    squares = torch.linalg.svdvals(responses.double()).square()
    assert change.note.startswith("sigma^2 - 1 <= ")
    assert squares.amin() < 0.9
    assert squares.amax() - 1 <= float(change.note.removeprefix("sigma^2 - 1 <= ")) + 1e-6


def test_a_weight_of_zeros_becomes_unitary():
    model = nn.Sequential(nn.Linear(N, N))
    nn.init.zeros_(model[0].weight)
    assert convert(model)[0].moved == math.inf
    assert_unitary(model)


def test_inference_mode():
    with torch.inference_mode():
        frozen = nn.Sequential(nn.Linear(N, N))
    assert "inference mode" in convert(frozen)[0].note
    model = nn.Sequential(nn.Linear(N, N))
    with torch.inference_mode():
        convert(model)
    model(torch.randn(3, N)).sum().backward()
    unitary_layers.projunn_step(model)
    assert_unitary(model)


MAPS = ("matrix_exp", "cayley", "householder")


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("shape", [(N, N), (3, N), (N, 3)], ids=str)
def test_what_torch_keeps_orthogonal_is_taken_over_as_it_is(map, shape):
    layer = orthogonal(nn.Linear(*shape), orthogonal_map=map)
    with torch.no_grad():
        layer.parametrizations.weight.original.add_(0.3 * torch.randn_like(layer.weight).fill_diagonal_(0))
    before, x = layer.weight.detach().clone(), torch.randn(4, shape[0])
    y = layer(x)
    model = nn.Sequential(layer)
    (row,) = convert(model)
    assert (row.before, row.after, row.moved) == ("Linear", "UnitaryLinear", 0.0)
    assert torch.equal(model[0].weight, before)
    assert_rounding(model[0](x), y, n=N)
    assert_unitary(model)
    model[0](x).square().sum().backward()
    model[0].projunn_step()
    assert_unitary(model)
    revert(model)
    assert type(model[0]) is nn.Linear
    assert model[0].state_dict().keys() == {"weight", "bias"}


def test_other_layers_that_torch_keeps_orthogonal():
    cell, rnn = nn.RNNCell(3, N), nn.RNN(3, N)
    model = nn.Sequential(
        orthogonal(cell, "weight_hh"), orthogonal(rnn, "weight_hh_l0"), orthogonal(nn.Conv2d(4, 4, 3))
    )
    x, image = torch.randn(2, 3), torch.randn(1, 4, 5, 5)
    h = torch.randn(2, N)
    before = cell(x, h), rnn(x)[0], model[2](image)
    report = convert(model)
    assert [row.moved for row in report] == [0, 0, None]
    assert report[2].note == "its weight is computed from other parameters, and is not orthonormal"
    for y, expected in zip((cell(x, h), rnn(x)[0], model[2](image)), before, strict=True):
        assert_rounding(y, expected, n=N)


def test_start_init_draws_weights_and_keeps_the_rest():
    model = nn.Sequential(nn.Linear(N, N), nn.RNN(N, N))
    before = state(model)
    torch.manual_seed(3)
    expected = UnitaryLinear(N, N).weight
    torch.manual_seed(3)
    report = convert(model, start="init")
    assert torch.equal(model[0].weight, expected)
    assert all(row.moved > 0 for row in report)
    for name in ("0.bias", "1.weight_ih_l0", "1.bias_ih_l0", "1.bias_hh_l0"):
        assert torch.equal(model.state_dict()[name], before[name])
    assert_unitary(model)


def test_start_nearest_draws_no_random_numbers():
    model = nn.Sequential(
        nn.Linear(N, N), nn.RNN(N, N, 2, dropout=0.1), nn.Conv2d(3, 3, 3), nn.MultiheadAttention(N, 2)
    )
    before = torch.get_rng_state()
    convert(model)
    revert(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_precisions():
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        model = nn.Sequential(nn.Linear(N, N, dtype=dtype))
        weight, x = model[0].weight.detach().clone(), torch.randn(3, N, dtype=dtype)
        convert(model)
        kept = torch.promote_types(dtype, torch.float32)
        assert (model[0].weight.dtype, model[0].bias.dtype, model(x).dtype) == (kept, dtype, dtype)
        assert_rounding(model[0].weight, nearest_unitary(weight.to(kept)), n=N)
        y = model(x)
        revert(model)
        assert model[0].weight.dtype == model(x).dtype == dtype
        assert_rounding(model(x), y, n=N)


def test_an_optimiser_saves_what_it_keeps_of_reverted_weights():
    model, x = nn.Sequential(nn.Linear(N, N), nn.Linear(N, N)), torch.ones(2, N)
    optimizer = torch.optim.AdamW(model.parameters())
    convert(model)
    attach(model, optimizer)
    for _ in range(2):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        revert(model[0])
    saved = optimizer.state_dict()["state"]
    assert "exp_avg" in saved[0]
    assert "projunn_momentum" in saved[2]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert "exp_avg" in optimizer.state[model[0].weight]


def test_a_gradient_follows_its_weight_to_another_precision():
    layer, x = nn.Linear(6, 4).to(torch.bfloat16), torch.ones(2, 6, dtype=torch.bfloat16)
    for change, dtype in ((convert, torch.float32), (revert, torch.bfloat16)):
        layer(x).sum().backward()
        before = layer.weight.grad.clone()
        change(layer)
        assert layer.weight.dtype == layer.weight.grad.dtype == dtype
        assert torch.equal(layer.weight.grad.float(), before.float())


def test_complex_weights_become_pairs_and_complex_numbers_again():
    model = nn.Sequential(nn.Linear(N, 5, dtype=torch.complex64), nn.Linear(5, N, dtype=torch.complex64))
    x = torch.randn(3, N, dtype=torch.complex64)
    expected = nearest_unitary(model[0].weight.detach())
    convert(model)
    assert_rounding(torch.view_as_complex(model[0].weight), expected, n=N)
    y = model(x)
    revert(model)
    assert_rounding(model(x), y, n=N)
    assert model[0].bias.is_complex()


def test_the_meta_device():
    model = nn.Sequential(nn.Linear(N, N), nn.Conv2d(2, 2, 3)).to("meta")
    report = convert(model)
    assert [row.moved for row in report] == [None, None]
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    model.to_empty(device="cpu")
    for layer in model:
        layer.reset_parameters()
    assert_unitary(model)


def test_channels_last_weights_are_laid_out_as_rows():
    model = nn.Sequential(nn.Conv2d(4, 6, 3)).to(memory_format=torch.channels_last)
    parameter, expected = model[0].weight, model[0].weight.detach().clone()
    convert(model)
    assert model[0].weight is parameter
    assert parameter.is_contiguous()
    assert_rounding(parameter, nearest_unitary(expected.reshape(6, -1)).view(expected.shape), n=36)


ISOMETRIES = {
    "odd": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 6, 8)),
    "even": (lambda: nn.Conv1d(4, 4, 4, padding="same"), (2, 4, 6)),
    "strided": (lambda: nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False), (2, 4, 6, 8)),
    "patches": (lambda: nn.Conv2d(3, 8, 2, stride=2), (2, 3, 6, 8)),
    "grouped": (lambda: nn.Conv3d(4, 4, 3, padding=1, groups=2), (2, 4, 3, 3, 4)),
}


@pytest.mark.parametrize("case", ISOMETRIES.values(), ids=ISOMETRIES)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_isometries(case):
    make, shape = case
    model, x = nn.Sequential(make()), torch.randn(shape)
    model[0].weight.requires_grad_(False)
    bias = None if model[0].bias is None else model[0].bias.detach().clone()
    plain_shape = model(x).shape
    (row,) = convert(model, conv="isometry")
    assert row.after == f"OrthogonalConv{len(shape) - 2}d"
    assert row.note == "drawn anew, pads circularly"
    assert row.moved > 0
    assert_unitary(model)
    assert model(x).shape == plain_shape
    assert bias is None or torch.equal(model[0].bias, bias)
    assert all(not weight.parameter.requires_grad for weight in unitary_weights(model))
    y = model(x)
    revert(model)
    assert type(model[0]) is type(make())
    assert model[0].padding_mode == "circular"
    assert not model[0].weight.requires_grad
    assert_rounding(model(x), y, n=100)


def test_where_there_is_no_isometry():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 6, 1), nn.ConvTranspose2d(4, 4, 2))
    report = convert(model, conv="isometry")
    assert report[0].note.startswith("expected padding to be one of")
    assert [row.after for row in report] == [None, "StiefelConv2d", "StiefelConvTranspose2d"]


@pytest.mark.parametrize("size", [(4, 6), (5, 4)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_full_support_becomes_a_circular_convolution(size, stride):
    size = tuple(n * stride for n in size)
    model, x = (
        nn.Sequential(unitary_layers.OrthogonalConv2d(2, 4, stride=stride, input_size=size)),
        torch.randn(2, 2, *size),
    )
    y = model(x)
    revert(model)
    assert type(model[0]) is nn.Conv2d
    assert_rounding(model(x), y, n=100)


def test_a_kernel_that_is_divided_is_reverted_divided():
    layers = [unitary_layers.StiefelConv2d(3, 3, 3, s, padding=1, normalize=n) for s, n in ((1, 1), (2, 1), (1, 0))]
    model, x = nn.Sequential(*layers), torch.randn(2, 3, 5, 5)
    model[1].weight = model[2].weight = model[0].weight  # each divides it by another number
    y = model(x)
    revert(model)
    assert_rounding(model(x), y, n=30)


AVERAGED = {
    "linear": (lambda: UnitaryLinear(N, 5), (3, N)),
    "orthonormal": (lambda: unitary_layers.StiefelConv2d(4, 6, 3, padding=1, normalize=True), (2, 4, 5, 5)),
    "transposed": (lambda: unitary_layers.StiefelConvTranspose2d(4, 6, 3), (2, 4, 5, 5)),
    "local": (lambda: OrthogonalConv2d(4, 4, 3, padding=1), (2, 4, 5, 5)),
    "full": (lambda: OrthogonalConv2d(4, 3, input_size=5), (2, 4, 5, 5)),
    "rnn": (lambda: unitary_layers.UnitaryRNN(3, N, nonlinearity="tanh"), (4, 2, 3)),
    "attention": (lambda: nn.TransformerEncoderLayer(N, 2, 16, dropout=0.0), (4, 2, N)),
}


@pytest.mark.parametrize("name", AVERAGED)
def test_an_average_is_reverted_to_what_it_does_in_evaluation(name):
    build, shape = AVERAGED[name]
    one, other = (nn.Sequential(build()) for _ in range(2))
    if name == "attention":
        convert(one), convert(other)
    with torch.no_grad():
        for mine, its in zip(unitary_weights(one), unitary_weights(other), strict=True):
            mine.parameter.mul_(0.8).add_(its.parameter, alpha=0.2)
    one.eval()
    x = torch.randn(shape)
    y = one(x)
    revert(one)
    assert not any(isinstance(module, UnitaryModule) for module in one.modules())
    torch.testing.assert_close(one(x), y)


def test_what_torch_has_not_is_not_reverted():
    model = nn.Sequential(
        unitary_layers.UnitaryRNN(3, N, nonlinearity="modrelu"),
        unitary_layers.UnitaryRNN(3, N, dtype=torch.complex64),
        unitary_layers.UnitaryRNN(3, N, return_sequence=False),
    )
    assert [row.note for row in revert(model)] == [
        "torch's has no nonlinearity 'modrelu'",
        "torch's has no complex numbers",
        "torch's returns the states of all time steps",
    ]
    assert all(isinstance(layer, unitary_layers.UnitaryRNN) for layer in model)


def test_copies_of_a_converted_model():
    model, x = nn.Sequential(nn.Linear(N, N), nn.RNN(N, N)), torch.randn(3, N)
    convert(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other[1](other[0](x))[0], model[1](model[0](x))[0])
        assert len(weights_of(other.parameters())) == 2
    revert(model)
    assert weights_of(model.parameters()) == {}  # and nothing looks for unitary weights in torch's layers
    kept = weakref.ref(model[0])
    del model, other
    gc.collect()
    assert kept() is None
