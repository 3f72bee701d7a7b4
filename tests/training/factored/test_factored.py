"""The factored gradient against the dense one: the same step, from products with thin matrices alone."""

import copy

import pytest
import torch
from closeness import assert_rounding
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from unitary_layers import (
    OrthogonalConv2d,
    ProjUNN,
    UnitaryLinear,
    UnitaryRNN,
    UnitaryRNNCell,
    UpdateRule,
    attach,
    projunn_step,
)
from unitary_layers.projunn import low_rank
from unitary_layers.projunn.gradient import DenseGradient, FactoredGradient, ScaledGradient, SummedGradient
from unitary_layers.projunn.sampling import recompressed
from unitary_layers.training import drop_gradients, unitary_weights

N, ROWS = 8, 5
FFT = {"transform": "fft"}
REAL, COMPLEX = torch.float64, torch.complex128
CASES = {
    "linear": (lambda **o: UnitaryLinear(N, N, **o), (ROWS, N), REAL),
    "linear-three-dimensions": (lambda **o: UnitaryLinear(N, N, bias=False, **o), (2, ROWS, N), REAL),
    "linear-wide": (lambda **o: UnitaryLinear(N, 3, **o), (ROWS, N), REAL),
    "linear-tall": (lambda **o: UnitaryLinear(3, N, **o), (ROWS, 3), REAL),
    "linear-complex": (lambda **o: UnitaryLinear(N, 5, **o), (ROWS, N), COMPLEX),
    "rnn-relu": (lambda **o: UnitaryRNN(3, N, nonlinearity="relu", **o), (4, ROWS, 3), REAL),
    "rnn-two-ways": (lambda **o: UnitaryRNN(3, N, 2, bidirectional=True, **o), (4, ROWS, 3), REAL),
    "rnn-module": (lambda **o: UnitaryRNN(3, N, nonlinearity=nn.Softsign(), **o), (4, ROWS, 3), REAL),
    "rnn-last-state": (
        lambda **o: UnitaryRNN(1, N, nonlinearity="identity", return_sequence=False, **o),
        (4, ROWS, 1),
        REAL,
    ),
    "rnn-complex": (lambda **o: UnitaryRNN(3, N, nonlinearity="modrelu", **o), (4, ROWS, 3), COMPLEX),
    "cell": (lambda **o: UnitaryRNNCell(3, N, **o), (ROWS, 3), REAL),
    "conv-basis": (lambda **o: OrthogonalConv2d(4, 4, input_size=(3, 4), **o), (ROWS, 4, 3, 4), REAL),
    "conv-fft": (
        lambda **o: OrthogonalConv2d(2, 8, stride=2, groups=2, input_size=6, transform="fft", **o),
        (3, 2, 6, 6),
        REAL,
    ),
}
every_case = pytest.mark.parametrize(("build", "shape", "dtype"), CASES.values(), ids=CASES)


def loss_of(module, x):
    y = module(x, torch.ones(x.size(0), N, dtype=x.dtype)) if isinstance(module, UnitaryRNNCell) else module(x)
    y = torch.cat([part.flatten() for part in y]) if isinstance(y, tuple) else y
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.real.dtype).reshape(y.shape)
    return (y * weights).sum().abs().square() + (y.abs() ** 3).sum()


def twins(build, dtype, **options):
    torch.manual_seed(0)
    dense = build(dtype=dtype, **options)
    factored = build(dtype=dtype, gradient="factored", **options)
    factored.load_state_dict(dense.state_dict())
    return dense, factored


def matrices(module):
    return [weight.matrix.clone() for weight in unitary_weights(module)]


def assert_same_weights(a, b):
    for mine, theirs in zip(matrices(a), matrices(b), strict=True):
        assert_rounding(mine, theirs, n=100 * N * N)


@every_case
@pytest.mark.parametrize("variant", ["D", "T"])
@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"rank": N // 2, "sampler": "power"},  # of whose gradient backward keeps all
        {"rank": 2, "direction": "gradient"},
    ],
    ids=str,
)
def test_the_step_is_that_of_the_dense_gradient(build, shape, dtype, variant, rule):
    dense, factored = twins(build, dtype, update=UpdateRule(variant, lr=0.1, **rule))
    for _ in range(3):
        factored.load_state_dict(dense.state_dict())  # so that each step is compared by itself
        x = torch.randn(shape, dtype=dtype)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        loss_of(dense, a).backward()
        loss_of(factored, b).backward()
        assert_rounding(b.grad, a.grad, n=100 * N)
        assert all(weight.parameter.grad.content.kept is None for weight in unitary_weights(factored))
        before = matrices(factored)
        projunn_step(dense)
        projunn_step(factored)
        assert_same_weights(factored, dense)
        assert all(not torch.equal(w, old) for w, old in zip(matrices(factored), before, strict=True))
        for name, buffer in dense.named_buffers():
            assert_rounding(factored.get_buffer(name).double(), buffer.double(), n=1000 * N)


@every_case
def test_ordinary_parameters_get_their_gradients(build, shape, dtype):
    dense, factored = twins(build, dtype)
    x = torch.randn(shape, dtype=dtype)
    for module in (dense, factored):
        loss_of(module, x).backward()
    unitary = {weight.name for weight in unitary_weights(dense)}
    for name, parameter in dense.named_parameters():
        if name not in unitary:
            assert_rounding(factored.get_parameter(name).grad, parameter.grad, n=100 * N)


def test_micro_batches_add_up():
    """With a rank of the rows of a micro-batch nothing is lost, and what is kept adds up to the dense sum."""
    rule = UpdateRule(rank=4, lr=0.1, direction="gradient")
    dense, factored = twins(CASES["linear"][0], REAL, update=rule)
    parts = torch.randn(2, 2, N, dtype=REAL)
    for module in (dense, factored):
        for x in parts:
            loss_of(module, x).backward()
    total = factored.unitary_weight("weight").collected
    assert_rounding(total.low_rank.matrix(), dense.weight.grad, n=100 * N)
    for module in (dense, factored):
        projunn_step(module)
    assert_same_weights(factored, dense)


def test_a_weight_used_many_times_keeps_thin_factors():
    layer = UnitaryLinear(64, 64, gradient="factored", update=UpdateRule(rank=2))
    h = torch.randn(3, 64)
    for _ in range(40):
        h = torch.tanh(layer(h))
    h.sum().backward()
    assert layer.unitary_weight("weight").collected.low_rank.rank == 12
    projunn_step(layer)
    assert int(layer.weight_count) == 1


def test_the_sum_of_samples_goes_down_as_the_dense_step_does():
    _, factored = twins(CASES["linear"][0], REAL, update=UpdateRule(rank=1, lr=1e-3))
    parts = torch.randn(6, ROWS, N, dtype=REAL)
    for x in parts:
        loss_of(factored, x).backward()
    with torch.no_grad():
        before = sum(loss_of(factored, x) for x in parts)
        projunn_step(factored)
        assert sum(loss_of(factored, x) for x in parts) < before


def test_the_gradient_of_an_input_alone_collects_nothing():
    layer, x = UnitaryLinear(N, N, gradient="factored"), torch.randn(ROWS, N, requires_grad=True)
    torch.autograd.grad(layer(x).sum(), x)
    loss_of(layer, x).backward(inputs=[x])
    assert layer.unitary_weight("weight").gradient is None


def test_a_frozen_weight_collects_nothing_and_inference_builds_no_graph():
    layer, x = UnitaryLinear(N, N, gradient="factored"), torch.randn(ROWS, N, requires_grad=True)
    with torch.no_grad():
        assert layer(x).grad_fn is None
    layer.weight.requires_grad_(False)
    loss_of(layer, x).backward()
    assert layer.unitary_weight("weight").collected.low_rank is None
    assert x.grad is not None


def test_drop_gradients_forgets():
    layer = UnitaryLinear(N, N, gradient="factored")
    loss_of(layer, torch.randn(ROWS, N)).backward()
    assert layer.unitary_weight("weight").gradient is not None
    drop_gradients(nn.Sequential(layer))
    assert layer.unitary_weight("weight").gradient is None


def test_an_activation_in_place_may_follow():
    for bias in (True, False):
        layer = UnitaryLinear(N, N, bias, gradient="factored")
        nn.Sequential(layer, nn.ReLU(inplace=True))(torch.randn(ROWS, N)).sum().backward()
        assert layer.unitary_weight("weight").gradient is not None


def test_an_input_or_output_changed_before_backward_is_an_error():
    layer, x = UnitaryLinear(N, N, gradient="factored"), torch.randn(ROWS, N)
    y = layer(x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    for nonlinearity in ("relu", nn.Softsign()):
        rnn = UnitaryRNN(3, N, nonlinearity=nonlinearity, gradient="factored")
        output, _ = rnn(torch.randn(4, ROWS, 3))
        with pytest.raises(RuntimeError, match=r"in ?place"):
            output.mul_(2)


def test_a_recurrent_layer_lets_its_states_go_when_backward_is_over():
    for nonlinearity in ("relu", nn.Softsign()):
        rnn = UnitaryRNN(3, N, nonlinearity=nonlinearity, gradient="factored")
        output, _ = rnn(torch.randn(4, ROWS, 3))
        storage = StorageWeakRef(output.untyped_storage())
        loss = output.square().sum()
        del output
        loss.backward(retain_graph=True)
        assert not storage.expired()
        loss.backward()
        assert storage.expired()  # though the loss and its graph are still there


@pytest.mark.parametrize("case", [case for case in CASES if case != "rnn-last-state"])
def test_a_second_derivative_is_refused(case):
    build, shape, dtype = CASES[case]
    module, x = build(dtype=dtype, gradient="factored"), torch.randn(shape, dtype=dtype, requires_grad=True)
    y = module(x)
    y = y[0] if isinstance(y, tuple) else y
    for loss in (loss_of(module, x), y.real.sum()):  # of the second, what arrives has no graph
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(RuntimeError, match="first derivatives alone"):
            first.abs().sum().backward()


def test_a_second_derivative_through_responses_to_impulses_is_that_of_the_dense_gradient():
    build, shape, dtype = CASES["rnn-last-state"]
    dense, factored = twins(build, dtype)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    for module in (dense, factored):
        (first,) = torch.autograd.grad(loss_of(module, x), x, create_graph=True)
        first.square().sum().backward()
        projunn_step(module)
    assert_same_weights(factored, dense)


def test_a_second_derivative_by_the_initial_state_is_refused():
    rnn, h_0 = UnitaryRNN(3, N, nonlinearity=nn.Softsign(), gradient="factored"), torch.ones(1, ROWS, N)
    loss = rnn(torch.randn(4, ROWS, 3), h_0.requires_grad_())[0].square().sum()
    (first,) = torch.autograd.grad(loss, h_0, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives alone"):
        first.sum().backward()


def test_a_gradient_that_is_not_finite_names_its_weight():
    model = nn.Sequential(UnitaryLinear(N, N, gradient="factored"), UnitaryLinear(N, N, gradient="factored"))
    before = matrices(model)
    (model(torch.randn(ROWS, N)) * torch.inf).sum().backward()
    with pytest.raises(RuntimeError, match=r"finite gradient.*'0.weight'"):
        projunn_step(model)
    assert all(torch.equal(a, b) for a, b in zip(matrices(model), before, strict=True))


def test_both_attachments_and_the_optimiser_take_it():
    x = torch.randn(ROWS, N)
    layer = UnitaryLinear(N, N, gradient="factored", update=UpdateRule(lr=0.1))
    expected = copy.deepcopy(layer)
    loss_of(expected, x).backward()
    projunn_step(expected)
    alone, hosted, whole = (copy.deepcopy(layer) for _ in range(3))
    attach(alone)
    loss_of(alone, x).backward()
    optimizer = torch.optim.AdamW(hosted.parameters(), weight_decay=0.5)
    attach(hosted, optimizer)
    loss_of(hosted, x).backward()
    optimizer.step()
    optimizer = ProjUNN(whole.parameters(), lr=0.1, unitary_lr_scale=1.0)
    loss_of(whole, x).backward()
    optimizer.step()
    for module in (alone, hosted, whole):
        assert torch.equal(module.weight, expected.weight)
        assert module.unitary_weight("weight").gradient is None


def test_a_tied_layer_that_leaves_a_matrix_adds_to_the_same_gradient():
    x, rule = torch.randn(ROWS, N, dtype=REAL), UpdateRule(rank=N, direction="gradient", lr=0.1)
    pairs = []
    for gradients in (("dense", "dense"), ("dense", "factored"), ("factored", "dense")):
        torch.manual_seed(0)
        pair = nn.Sequential(*(UnitaryLinear(N, N, gradient=g, update=rule, dtype=REAL) for g in gradients))
        pair[0].weight = pair[1].weight
        loss_of(pair, x).backward()
        projunn_step(pair)
        pairs.append(pair)
    for pair in pairs[1:]:
        assert_same_weights(pair, pairs[0])


def test_rmsprop_and_samplers_that_need_the_matrix_are_refused():
    layer = UnitaryLinear(N, N, gradient="factored")
    loss_of(layer, torch.randn(ROWS, N)).backward()
    with pytest.raises(ValueError, match=r"factored gradient of .*rmsprop"):
        ProjUNN(layer.parameters(), direction="rmsprop").step()
    for sampler in ("column", "svd"):
        with pytest.raises(ValueError, match="sampler"):
            UnitaryLinear(N, N, gradient="factored", update=UpdateRule(sampler=sampler))
        with pytest.raises(ValueError, match="sampler"):
            layer.update = UpdateRule(sampler=sampler)
    with pytest.raises(ValueError, match="gradient"):
        UnitaryLinear(N, N, gradient="sparse")
    with pytest.raises(ValueError, match="kernel_size"):
        OrthogonalConv2d(N, N, 3, gradient="factored")


def test_autocast_and_a_cast_between_backward_and_step():
    for module, x in (
        (UnitaryLinear(N, N, gradient="factored"), torch.randn(ROWS, N)),
        (OrthogonalConv2d(4, 4, input_size=4, gradient="factored"), torch.randn(2, 4, 4, 4)),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(module, x)
        loss.backward()
        assert all(f.dtype == w.matrix.dtype for w in unitary_weights(module) for f in w.gradient.low_rank)
        module.double()
        projunn_step(module)
        assert all(w.matrix.real.dtype == torch.float64 for w in unitary_weights(module))


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_operators_are_what_their_dense_matrices_are(dtype):
    delta, x = torch.randn(2, ROWS, 3, dtype=dtype), torch.randn(2, ROWS, 5, dtype=dtype)
    factored = FactoredGradient(delta, x)
    twin = torch.einsum("bro,bri->boi", delta, x.conj())
    rows, columns = torch.rand(2, 3, dtype=REAL), torch.rand(2, 5, dtype=REAL)
    operators = {
        factored: twin,
        SummedGradient((factored, DenseGradient(twin))): 2 * twin,
        ScaledGradient(factored, rows, columns): rows[..., None] * twin * columns[:, None],
    }
    u, v = torch.randn(2, 2, 3, dtype=dtype).mT, torch.randn(2, 2, 5, dtype=dtype).mT
    for operator, matrix in operators.items():
        assert operator.shape == matrix.shape
        assert operator.dtype == dtype
        assert_rounding(operator.dense(), matrix, n=100)
        assert_rounding(operator.matmul(v), matrix @ v, n=100)
        assert_rounding(operator.rmatmul(u), matrix.mH @ u, n=100)
        assert_rounding(operator.column_norms(), torch.linalg.vector_norm(matrix, dim=-2), n=100)
        assert operator.is_finite()


def test_many_equal_parts_are_one_larger_part():
    once, often = (UnitaryLinear(12, 12, dtype=torch.complex64, gradient="factored") for _ in range(2))
    often.load_state_dict(once.state_dict())
    x = torch.randn(1, 12, dtype=torch.complex64)
    for _ in range(20):  # of equal columns MKL's QR makes NaN; see Note [Equal columns in complex64]
        often(x).real.sum().backward()
    (20 * once(x).real.sum()).backward()
    for layer in (once, often):
        layer.update = UpdateRule(lr=1e-3)
        layer.projunn_step()
    assert_rounding(often.matrix, once.matrix, n=20 * N)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_recompression_is_the_truncated_svd(dtype):
    factors = low_rank(torch.randn(2, N, N, dtype=dtype), 6)
    u, s, vh = torch.linalg.svd(factors.matrix())
    assert_rounding(recompressed(factors, 2).matrix(), u[..., :2] * s[..., None, :2] @ vh[..., :2, :], n=100 * N)
    assert recompressed(factors, 6) is factors
    zero = low_rank(torch.zeros(N, N, dtype=dtype), 3)
    assert recompressed(zero, 1).matrix().abs().max() == 0


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_parts_that_overflow_leave_it_to_the_step(nonfinite):
    layer = UnitaryLinear(N, N, gradient="factored", update=UpdateRule(nonfinite=nonfinite))
    before = layer.weight.detach().clone()
    for scale in (*[1.0] * 10, torch.inf, 1.0):
        (scale * layer(torch.ones(ROWS, N))).sum().backward()
    if nonfinite == "raise":
        with pytest.raises(RuntimeError, match="expected a finite gradient of the unitary weight 'weight'"):
            layer.projunn_step()
    else:
        layer.projunn_step()
    assert torch.equal(layer.weight, before)


def test_backward_on_the_meta_device():
    layer = UnitaryLinear(3, N, gradient="factored", device="meta")
    layer(torch.randn(ROWS, 3, device="meta")).sum().backward()
    assert layer.bias.grad.is_meta
