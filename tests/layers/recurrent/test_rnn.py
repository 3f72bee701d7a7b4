"""``UnitaryRNN`` and ``UnitaryRNNCell`` against torch's own layers, which are the slow and obvious twins here."""

from dataclasses import dataclass

import pytest
import torch
from closeness import assert_rounding, without_our_buffers
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from unitary_layers import UnitaryRNN, UnitaryRNNCell

INPUT, HIDDEN, STEPS, BATCH = 3, 5, 4, 3
ROUNDING = STEPS * HIDDEN  # products of length HIDDEN, one after the other
FORMS = ("steps first", "batch first", "unbatched", "unbatched, batch first", "packed, sorted", "packed, unsorted")


@dataclass
class Pair:
    """Our layer and torch's with the same weights."""

    ours: nn.Module
    theirs: nn.Module


def same_weights(ours: nn.Module, theirs: nn.Module) -> Pair:
    """Torch's random weights and biases with our unitary recurrent matrices in between, loaded strictly into ours."""
    state = theirs.state_dict() | {k: v for k, v in without_our_buffers(ours).items() if k.startswith("weight_hh")}
    theirs.load_state_dict(state)
    ours.load_state_dict(theirs.state_dict())
    return Pair(ours, theirs)


def rnn_pair(**options: object) -> Pair:
    return same_weights(UnitaryRNN(INPUT, HIDDEN, **options), nn.RNN(INPUT, HIDDEN, **options))


def make_input(form: str, dtype: torch.dtype) -> tuple[Tensor | PackedSequence, Tensor]:
    """What to call the layer with, and the tensor in it whose gradient is compared."""
    shape = (STEPS, INPUT) if "unbatched" in form else (STEPS, BATCH, INPUT)
    x = torch.randn(shape, dtype=dtype).requires_grad_()
    if "packed" in form:
        lengths, is_sorted = ([4, 2, 1], True) if "unsorted" not in form else ([2, 4, 1], False)
        return pack_padded_sequence(x, lengths, enforce_sorted=is_sorted), x
    return (x.transpose(0, 1) if form == "batch first" else x), x


def outcome(layer: nn.Module, form: str, dtype: torch.dtype, given: bool) -> dict[str, Tensor]:
    """Output, final state, and the gradients of a loss of both by all that has one."""
    torch.manual_seed(1)
    x, leaf = make_input(form, dtype)
    directions = layer.num_layers * (1 + layer.bidirectional)
    h_0 = torch.randn((directions, HIDDEN) if "unbatched" in form else (directions, BATCH, HIDDEN), dtype=dtype)
    h_0.requires_grad_()
    output, h_n = layer(x, h_0) if given else layer(x)
    assert type(output) is type(x)
    results = {"h_n": h_n}
    if isinstance(output, PackedSequence):
        for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            if (order := getattr(output, name)) is not None:
                results[name] = order.double()
        output = output.data
    loss = (output * torch.randn_like(output)).sum() + (h_n * torch.randn_like(h_n)).sum()
    leaves = {"input": leaf, **dict(layer.named_parameters())} | ({"h_0": h_0} if given else {})
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return results | {"output": output} | {f"gradient of {k}": g for k, g in zip(leaves, gradients, strict=True)}


def assert_same(pair: Pair, form: str, dtype: torch.dtype, given: bool) -> None:
    ours, theirs = (outcome(layer, form, dtype, given) for layer in (pair.ours, pair.theirs))
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        assert_rounding(ours[name], expected, n=ROUNDING)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("given", "dtype"), [(False, torch.float32), (True, torch.float64)], ids=["no h_0, float32", "h_0, float64"]
)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_rnn_is_torchs(nonlinearity, bias, num_layers, bidirectional, given, dtype, form):
    options = {"nonlinearity": nonlinearity, "bias": bias, "num_layers": num_layers, "bidirectional": bidirectional}
    pair = rnn_pair(**options, batch_first="batch first" in form, dtype=dtype)
    assert_same(pair, form, dtype, given)


def test_the_positional_arguments_are_torchs():
    arguments = (INPUT, HIDDEN, 2, "relu", False, True, 0.5, True)  # what follows is keyword-only in torch's, in effect
    pair = same_weights(UnitaryRNN(*arguments, "cpu", torch.float64), nn.RNN(*arguments, dtype=torch.float64))
    pair.ours.eval()
    pair.theirs.eval()
    for name in ("input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "dropout"):
        assert getattr(pair.ours, name) == getattr(pair.theirs, name)
    assert pair.ours.bidirectional is True
    assert_same(pair, "batch first", torch.float64, given=True)
    arguments = (INPUT, HIDDEN, False, "relu", "cpu", torch.float64)
    pair = same_weights(UnitaryRNNCell(*arguments), nn.RNNCell(*arguments))
    x = torch.randn(BATCH, INPUT, dtype=torch.float64)
    assert_rounding(pair.ours(x), pair.theirs(x), n=HIDDEN)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("dropout", [0.5, 1.0])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_dropout_is_torchs(training, dropout, bidirectional, form):
    # the masks of p = 0.5 are the same too: both draw them for the rows of a layer's output in the order of time
    options = {"num_layers": 3, "dropout": dropout, "bidirectional": bidirectional}
    pair = rnn_pair(**options, batch_first="batch first" in form)
    pair.ours.train(training)
    pair.theirs.train(training)
    assert_same(pair, form, torch.float32, given=True)


def test_dropout_acts_between_layers_only_and_only_in_training():
    rnn = UnitaryRNN(INPUT, HIDDEN, num_layers=2, dropout=1.0)
    x = torch.randn(STEPS, BATCH, INPUT)
    trained, _ = rnn(x)
    expected, _ = rnn(torch.zeros_like(x))  # the second layer sees zeros, as in a layer without biases and input
    assert torch.equal(trained, expected)
    assert trained.abs().max() == 0
    assert rnn.eval()(x)[0].abs().min() > 0
    with pytest.warns(UserWarning, match=r"num_layers greater than 1, but got dropout=0.5 and num_layers=1"):
        UnitaryRNN(INPUT, HIDDEN, dropout=0.5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_what_users_of_torch_read(num_layers, bidirectional, bias):
    pair = rnn_pair(num_layers=num_layers, bidirectional=bidirectional, bias=bias)
    names, shapes = ([(k, p.shape) for k, p in layer.named_parameters()] for layer in (pair.ours, pair.theirs))
    assert names == shapes
    assert len(pair.ours.all_weights) == len(pair.theirs.all_weights)
    for mine, torchs in zip(pair.ours.all_weights, pair.theirs.all_weights, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, torchs, strict=True))
        assert all(any(p is q for q in pair.ours.parameters()) for p in mine)
    assert pair.ours.flatten_parameters() is None
    ours_alone = set(pair.ours.state_dict()) - set(pair.theirs.state_dict())
    assert ours_alone == {f"{name}_count" for name, _ in names if name.startswith("weight_hh")}


def test_weights_travel_both_ways():
    ours, theirs = UnitaryRNN(INPUT, HIDDEN, num_layers=2), nn.RNN(INPUT, HIDDEN, num_layers=2)
    theirs.load_state_dict(without_our_buffers(ours))
    again = UnitaryRNN(INPUT, HIDDEN, num_layers=2)
    incompatible = again.load_state_dict(theirs.state_dict(), strict=True)
    assert not incompatible.missing_keys
    assert not incompatible.unexpected_keys
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in ours.state_dict().items())
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_ih_l1"):
        again.load_state_dict(UnitaryRNN(INPUT, HIDDEN).state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*weight_hh_l1_count"):
        UnitaryRNN(INPUT, HIDDEN).load_state_dict(again.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [False, True], ids=["no h", "h"])
@pytest.mark.parametrize("batch", [(), (BATCH,), (0,)], ids=["unbatched", "batch", "empty batch"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_cell_is_torchs(nonlinearity, bias, batch, given, dtype):
    options = {"nonlinearity": nonlinearity, "bias": bias, "dtype": dtype}
    pair = same_weights(UnitaryRNNCell(INPUT, HIDDEN, **options), nn.RNNCell(INPUT, HIDDEN, **options))
    names, theirs = ([k for k, _ in layer.named_parameters()] for layer in (pair.ours, pair.theirs))
    assert names == theirs
    x = torch.randn(*batch, INPUT, dtype=dtype, requires_grad=True)
    h = torch.randn(*batch, HIDDEN, dtype=dtype, requires_grad=True)
    direction = torch.randn(*batch, HIDDEN, dtype=dtype)
    found = []
    for layer in (pair.ours, pair.theirs):
        y = layer(x, h) if given else layer(x)
        leaves = [x, *([h] if given else []), *layer.parameters()]
        found.append([y, *torch.autograd.grad((y * direction).sum(), leaves)])
    for actual, expected in zip(*found, strict=True):
        assert_rounding(actual, expected, n=HIDDEN)


@pytest.mark.parametrize("nonlinearity", ["tanh", "modrelu", "identity"])
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_the_layer_is_its_cell_step_by_step(is_complex, nonlinearity):
    dtype = torch.complex64 if is_complex else torch.float32
    rnn = UnitaryRNN(INPUT, HIDDEN, nonlinearity=nonlinearity, dtype=dtype)
    cell = UnitaryRNNCell(INPUT, HIDDEN, nonlinearity=nonlinearity, dtype=dtype)
    for name, parameter in rnn.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    renamed = {k.replace("_l0", "").replace("activations.0", "activation"): v for k, v in rnn.state_dict().items()}
    cell.load_state_dict(renamed)
    x = torch.randn(STEPS, BATCH, INPUT, dtype=dtype)
    h = torch.randn(1, BATCH, HIDDEN, dtype=dtype)
    output, h_n = rnn(x, h)
    state = h[0]
    for t in range(STEPS):
        state = cell(x[t], state)
        assert_rounding(output[t], state, n=ROUNDING)
    assert_rounding(h_n[0], state, n=ROUNDING)


def test_an_empty_batch_and_a_custom_nonlinearity():
    pair = rnn_pair(num_layers=2, bidirectional=True)
    for actual, expected in zip(pair.ours(torch.empty(4, 0, 3)), pair.theirs(torch.empty(4, 0, 3)), strict=True):
        assert actual.shape == expected.shape
    own = nn.Tanh()
    custom = UnitaryRNN(INPUT, HIDDEN, num_layers=2, nonlinearity=nn.Sequential(own))
    custom.load_state_dict(without_our_buffers(UnitaryRNN(INPUT, HIDDEN, num_layers=2)))
    plain = UnitaryRNN(INPUT, HIDDEN, num_layers=2)
    plain.load_state_dict(custom.state_dict())
    x = torch.randn(STEPS, BATCH, INPUT)
    assert_rounding(custom(x)[0], plain(x)[0], n=ROUNDING)  # the loop and the node
    assert len({id(m) for m in [own, *custom.activations.modules()]}) == 6  # a copy a layer, in its own Sequential


def test_backward_under_autocast_of_a_forward_without():
    rnn = UnitaryRNN(3, 4)
    x = torch.randn(5, 2, 3)
    rnn(x)[0].square().sum().backward()
    expected = rnn.weight_hh_l0.grad.clone()
    rnn.zero_grad()
    loss = rnn(x)[0].square().sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss.backward()
    torch.testing.assert_close(rnn.weight_hh_l0.grad, expected, rtol=0.02, atol=0.02)  # the input's product is rounded


def test_hooks_of_a_nonlinearity_see_every_step():
    rnn, seen = UnitaryRNN(3, 4), []
    handle = rnn.activations[0].register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(5, 2, 3)
    hooked, _ = rnn(x)
    assert len(seen) == 5
    handle.remove()
    torch.testing.assert_close(hooked, rnn(x)[0])
    assert len(seen) == 5


@pytest.mark.parametrize("nonlinearity", ["tanh", nn.ELU()], ids=["fused", "loop"])
def test_a_state_that_is_overwritten_before_backward_is_noticed(nonlinearity):
    rnn = UnitaryRNN(3, 4, nonlinearity=nonlinearity, gradient="factored")
    h_0 = torch.ones(1, 2, 4)
    output, h_n = rnn(torch.randn(5, 2, 3), h_0)
    h_0.copy_(h_n.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.square().sum().backward()


@pytest.mark.parametrize("gradient", ["dense", "factored"])
def test_a_second_derivative_by_what_comes_after_is_refused(gradient):
    rnn, head = UnitaryRNN(3, 4, gradient=gradient), nn.Linear(4, 1)
    x = torch.randn(5, 2, 3, requires_grad=True)
    (first,) = torch.autograd.grad(head(rnn(x)[0]).square().mean(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives alone"):
        torch.autograd.grad(first.square().sum(), head.weight)


@pytest.mark.parametrize("gradient", ["dense", "factored"])
def test_a_graph_of_the_gradient_that_nobody_differentiates(gradient):
    rnn = UnitaryRNN(3, 4, gradient=gradient)
    x = torch.randn(5, 2, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(rnn(x)[0].square().mean(), x)
    for forward in (rnn, lambda x: checkpoint(rnn, x, use_reentrant=False)):
        (found,) = torch.autograd.grad(forward(x)[0].square().mean(), x, create_graph=True)
        torch.testing.assert_close(found.detach(), expected)


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_the_length_of_a_step_follows_the_time_steps_in_either_mode(mode):
    rnn, x = UnitaryRNN(INPUT, HIDDEN).train(mode), torch.randn(9, BATCH, INPUT)
    rnn(x)
    assert rnn.uses == 9
    with torch.no_grad():
        rnn(x[:2])
    assert rnn.uses == 9
