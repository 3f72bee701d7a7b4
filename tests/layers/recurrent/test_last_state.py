"""``return_sequence=False``: the last states that the whole sequence ends with, whichever way leads to them."""

import copy
from functools import partial

import pytest
import torch
from closeness import assert_rounding
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from unitary_layers import UnitaryRNN, haar_unitary
from unitary_layers.layers.recurrent import rnn as module_of_layer
from unitary_layers.layers.recurrent.impulse import impulses_pay, last_states
from unitary_layers.layers.recurrent.linear import are_few, by_pairs
from unitary_layers.layers.recurrent.scan import loop, scan

INPUT, N, STEPS, BATCH = 2, 6, 21, 7
LENGTHS = {"packed, sorted": [21, 20, 18, 18, 17, 16, 1], "packed, unsorted": [18, 1, 17, 21, 20, 16, 18]}
FORMS = ("steps first", "batch first", "unbatched", *LENGTHS)
every_form = pytest.mark.parametrize("form", FORMS)
both_fields = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])


@pytest.fixture
def impulses(monkeypatch) -> list[int]:
    """As many entries as a layer has asked for last states by responses to impulses."""
    calls: list[int] = []
    monkeypatch.setattr(module_of_layer, "last_states", lambda *a, **o: calls.append(1) or last_states(*a, **o))
    return calls


def make_pair(**options: object) -> tuple[UnitaryRNN, UnitaryRNN]:
    """A layer of last states and its twin that returns all, with biases."""
    layer = UnitaryRNN(INPUT, N, return_sequence=False, **options)
    for name, parameter in layer.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    twin = copy.deepcopy(layer)
    twin.return_sequence = True
    return layer, twin


def make_input(form: str, x: Tensor) -> Tensor | PackedSequence:
    if form not in LENGTHS:
        return {"steps first": x, "batch first": x.transpose(0, 1), "unbatched": x[:, 0]}[form]
    if not x.is_complex():
        return pack_padded_sequence(x, LENGTHS[form], enforce_sorted=form == "packed, sorted")
    pairs, *rest = make_input(form, torch.view_as_real(x).flatten(2))  # torch packs no complex numbers with a gradient
    return PackedSequence(torch.view_as_complex(pairs.unflatten(1, (-1, 2))), *rest)


def one_by_one(layer: UnitaryRNN, form: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """What ``return_sequence=False`` stands for: the ends of all states, of each sequence by itself."""
    lengths = LENGTHS.get(form, [STEPS] if form == "unbatched" else [STEPS] * BATCH)
    found = []
    for i, length in enumerate(lengths):
        states, h_n = layer(x[:length, i])
        forwards, *backwards = states.split(N, dim=-1)
        found.append((torch.cat([forwards[-1], *(s[0] for s in backwards)]), h_n))
    output, h_n = (torch.stack(parts, dim=-2) for parts in zip(*found, strict=True))
    return (output[0], h_n[:, 0]) if form == "unbatched" else (output, h_n)


def with_gradients(run, layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Results, and the gradients of a loss that reads all of them."""
    results, generator = run(), torch.Generator().manual_seed(3)
    loss = sum((torch.randn(r.shape, dtype=r.dtype, generator=generator) * r).sum() for r in results)
    loss = loss.real if loss.is_complex() else loss
    return [*results, *torch.autograd.grad(loss, [x, *layer.parameters()])]


@every_form
@both_fields
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}], ids=["plain", "stacked both ways"])
@pytest.mark.parametrize("nonlinearity", ["identity", "modrelu"])
def test_the_last_states_are_those_of_the_sequence(nonlinearity, options, dtype, form):
    layer, twin = make_pair(nonlinearity=nonlinearity, batch_first=form == "batch first", dtype=dtype, **options)
    x = torch.randn(STEPS, BATCH, INPUT, dtype=dtype, requires_grad=True)
    found = with_gradients(lambda: layer(make_input(form, x)), layer, x)
    expected = with_gradients(lambda: one_by_one(twin, form, x), twin, x)
    for mine, theirs in zip(found, expected, strict=True):
        assert_rounding(mine, theirs, n=STEPS * N * BATCH)


@every_form
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_a_linear_layer_of_few_features_takes_impulses(bias, bidirectional, form, impulses):
    options = {"nonlinearity": "identity", "bias": bias, "bidirectional": bidirectional}
    layer, _ = make_pair(**options, batch_first=form == "batch first")
    x = torch.randn(STEPS, BATCH, INPUT)
    layer(make_input(form, x))
    assert len(impulses) == (form != "unbatched") * (1 + bidirectional)  # of one sequence it is as many rows as before


def test_what_has_states_of_its_own_goes_step_by_step(impulses):
    layer, twin = make_pair(nonlinearity="identity")
    x, h_0 = torch.randn(STEPS, BATCH, INPUT), torch.randn(1, BATCH, N)
    assert torch.equal(layer(x, h_0)[0], twin(x, h_0)[1][0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x)[0], twin(x)[1][0])
    twin(x)
    layer.activations[0].register_forward_hook(lambda *_: None)
    layer(x)
    make_pair(nonlinearity="tanh")[0](x)
    assert impulses == []


@pytest.mark.parametrize(
    ("batch", "features", "pays"), [(100, 1, True), (100, 90, True), (100, 100, False), (2, 2, False), (1, 1, False)]
)
def test_impulses_pay_where_features_are_fewer_than_sequences(batch, features, pays):
    x = torch.empty(5 * batch, features)
    assert impulses_pay([nn.Identity()], x, 5, batch, 512, bias=False) is pays
    assert not impulses_pay([nn.Tanh()], x, 5, batch, 512, bias=False)


@both_fields
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("lengths", [9, torch.tensor([3, 2, 2, 1])], ids=["padded", "packed"])
def test_gradcheck(lengths, reverse, dtype):
    rows, n = 27 if isinstance(lengths, int) else 8, 3
    inputs = [torch.randn(shape, dtype=dtype) for shape in ((rows, INPUT), (n, INPUT), (n,))]
    inputs.append(haar_unitary(n, dtype=dtype))

    def states(x: Tensor, weight_ih: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
        run = partial(scan, weight=weight, activation=nn.Identity())
        return last_states(x, lengths, 3, weight_ih, bias, run, reverse=reverse)

    assert gradcheck(states, tuple(t.requires_grad_() for t in inputs))


def test_a_second_derivative_of_the_recurrent_matrix_is_refused():
    layer, _ = make_pair(nonlinearity="identity")
    output, _ = layer(torch.randn(STEPS, BATCH, INPUT))
    (first,) = torch.autograd.grad(output.square().sum(), layer.weight_hh_l0, create_graph=True)
    for leaf in (layer.weight_hh_l0, layer.weight_ih_l0):
        with pytest.raises(RuntimeError, match="first derivatives alone"):
            torch.autograd.grad(first.sum(), leaf, retain_graph=True)


def test_a_penalty_of_the_gradient_of_the_input_has_a_gradient(impulses):
    layer, _ = make_pair(nonlinearity="identity", dtype=torch.float64)
    x = torch.randn(STEPS, BATCH, INPUT, dtype=torch.float64, requires_grad=True)

    def by_hand() -> Tensor:
        h = x.new_zeros(BATCH, N)
        for step in x:
            bias = layer.bias_ih_l0 + layer.bias_hh_l0
            h = step @ layer.weight_ih_l0.mT + bias + h @ layer.weight_hh_l0.mT
        return h

    leaves = (layer.weight_hh_l0, layer.weight_ih_l0, layer.bias_ih_l0, x)
    found = []
    for last in (layer(x)[0], by_hand()):
        (first,) = torch.autograd.grad(last.pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), leaves))
    assert impulses
    for ours, expected in zip(*found, strict=True):
        assert_rounding(ours, expected, n=1000 * STEPS)


def test_states_by_pairs_neither_grow_nor_shrink():
    steps, batch, n = 3000, 2, 32
    weight, first = haar_unitary(n), torch.randn(batch, n)
    x = torch.zeros(steps * batch, n)
    assert are_few([batch] * steps, x)
    norms = by_pairs(x, first, weight.mT, reverse=False).view(steps, batch, n).norm(dim=-1)
    drift = (norms / first.norm(dim=-1) - 1).abs().amax()
    assert drift <= steps * torch.finfo(torch.float32).eps * n**0.5, f"{drift:.1e}"  # of a step, the error of W^H W
    expected, _ = loop(x, [batch] * steps, first @ weight, weight, nn.Identity())
    assert_rounding(by_pairs(x, first, weight.mT, reverse=False), expected, n=steps)
