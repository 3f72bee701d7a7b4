"""The state space layer against its slow twin: the loop of its docstring, and a linear UnitaryRNN."""

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from unitary_layers import UnitaryRNN, UnitarySSM

N, BATCH = 5, 3
DD = {"dtype": torch.float64}


def eps(steps: int) -> float:
    return 100 * N * math.sqrt(steps) * torch.finfo(torch.float64).eps


def inputs(steps: int, features: int, seed: int = 0) -> Tensor:
    return torch.randn(steps, BATCH, features, generator=torch.Generator().manual_seed(seed), **DD)


def loop(ssm: UnitarySSM, x: Tensor, h: Tensor, suffix: str) -> tuple[Tensor, Tensor]:
    """One layer and direction, step by step."""
    p = {name.removesuffix(suffix): t for name, t in ssm.named_parameters() if name.endswith(suffix)}
    basis, theta = torch.view_as_complex(p["basis"]), p["log_phase"].exp()
    gamma = (-p["log_decay"].exp()).exp() if ssm.decay else torch.ones_like(theta)
    norm = (1 - gamma**2).sqrt() if ssm.decay else gamma
    driven = norm * ((x @ p["weight_ih"].mT).to(basis.dtype) @ basis.conj())
    lam, outputs = torch.polar(gamma, theta), []
    for t in range(len(x)):
        h = lam * h + driven[t]
        y = (h @ basis.mT).real
        y = y + x[t] @ p["weight_skip"].mT if ssm.skip else y
        outputs.append(y + p["bias"] if ssm.bias else y)
    return torch.stack(outputs), h


def twin(ssm: UnitarySSM, x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
    """All layers and directions, step by step."""
    h_n, i = [], 0
    for layer in range(ssm.num_layers):
        outputs = []
        for suffix in [f"_l{layer}", f"_l{layer}_reverse"][: 1 + ssm.bidirectional]:
            reverse = suffix.endswith("reverse")
            y, h = loop(ssm, x.flip(0) if reverse else x, hx[i], suffix)
            outputs.append(y.flip(0) if reverse else y)
            h_n.append(h)
            i += 1
        x = torch.cat(outputs, -1)
    return x, torch.stack(h_n)


def randomised(ssm: UnitarySSM) -> UnitarySSM:
    """With biases that are not zero and states that fade at once, so that no term is small."""
    with torch.no_grad():
        for name, p in ssm.named_parameters():
            if name.startswith("bias"):
                p.normal_()
            if name.startswith("log_decay"):
                p.uniform_(-4, 0)
    return ssm


def ends_of(output: Tensor) -> Tensor:
    """What the two directions end with: at the last time step, and at the first."""
    return torch.cat([output[-1, ..., :N], output[0, ..., N:]], -1)


def start_of(ssm: UnitarySSM) -> Tensor:
    layers = ssm.num_layers * (1 + ssm.bidirectional)
    return torch.randn(layers, BATCH, N, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))


OPTIONS = [{}, {"decay": False}, {"bias": False, "skip": False}, {"num_layers": 2, "bidirectional": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("features", [1, 6])
@pytest.mark.parametrize("steps", [1, 16, 300])
def test_outputs_states_and_gradients_are_those_of_the_loop(steps, features, options):
    ssm, x = randomised(UnitarySSM(features, N, **options, **DD)), inputs(steps, features)
    results = []
    for function in (ssm, lambda x, h: twin(ssm, x, h)):
        leaf, hx = x.clone().requires_grad_(), start_of(ssm).requires_grad_()
        output, h_n = function(leaf, hx)
        loss = (output * torch.linspace(-1, 1, output.numel(), **DD).view_as(output)).sum() + h_n.imag.square().sum()
        results.append((output, h_n, *torch.autograd.grad(loss, [leaf, hx, *ssm.parameters()])))
    for fast, slow in zip(*results, strict=True):
        assert torch.allclose(fast, slow, rtol=0, atol=steps * eps(steps) * float(slow.detach().abs().amax() + 1))


@pytest.mark.parametrize("decay", [True, False])
def test_it_is_a_linear_unitary_rnn_with_the_assembled_matrix(decay):
    ssm, x = UnitarySSM(2, N, bias=False, skip=False, decay=decay, **DD), inputs(40, 2)
    rnn = UnitaryRNN(2, N, nonlinearity="identity", bias=False, dtype=torch.complex128)
    matrix, complex_x = ssm.recurrent_matrix(), x.to(torch.complex128)
    parameters = {"weight_ih_l0": torch.view_as_real(ssm.input_matrix()), "weight_hh_l0": torch.view_as_real(matrix)}
    states, last = torch.func.functional_call(rnn, parameters, (complex_x,))
    output, h_n = ssm(x)
    assert torch.allclose(output, states.real, rtol=0, atol=40 * eps(40))
    assert torch.allclose(h_n @ torch.view_as_complex(ssm.basis_l0).mT, last, rtol=0, atol=40 * eps(40))
    assert torch.allclose(matrix @ matrix.mH, torch.eye(N).to(matrix), atol=eps(1)) != decay


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("features", [1, 6])
@pytest.mark.parametrize("return_sequence", [False, True])
def test_a_batch_may_be_empty(features, return_sequence, stride):
    ssm = UnitarySSM(features, N, return_sequence=return_sequence, stride=stride)
    output, h_n = ssm(torch.zeros(5, 0, features))
    assert output.shape == ((5 // stride, 0, N) if return_sequence else (0, N))
    assert h_n.shape == (1, 0, N)


@pytest.mark.parametrize("features", [1, 6])
def test_a_packed_sequence_is_its_sequences(features):
    ssm = randomised(UnitarySSM(features, N, num_layers=2, bidirectional=True, **DD))
    lengths = (20, 3, 37)
    sequences = [inputs(steps, features, i)[:, 0] for i, steps in enumerate(lengths)]
    hx = start_of(ssm)
    packed, h_n = ssm(pack_sequence(sequences, enforce_sorted=False), hx)
    last, h_n_of_last = ssm.last(pack_sequence(sequences, enforce_sorted=False), hx)
    padded, found = pad_packed_sequence(packed)
    assert tuple(found.tolist()) == lengths
    for i, sequence in enumerate(sequences):
        output, h = ssm(sequence, hx[:, i])
        close = {"rtol": 0, "atol": 37 * eps(37) * float(output.detach().abs().amax() + 1)}
        assert torch.allclose(padded[: len(sequence), i], output, **close)
        assert torch.allclose(last[i], ends_of(output), **close)
        assert torch.allclose(h_n[:, i], h, **close)
        assert torch.allclose(h_n_of_last[:, i], h, **close)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("features", [1, 6])
def test_the_last_output_alone_is_the_last_one(features, options):
    ssm = randomised(UnitarySSM(features, N, return_sequence=False, **options, **DD))
    x, hx = inputs(33, features), start_of(ssm)
    output, h_n = ssm(x, hx)
    ssm.return_sequence = True
    outputs, states = ssm(x, hx)
    assert output.shape == outputs.shape[1:]
    ends = ends_of(outputs) if ssm.bidirectional else outputs[-1]
    assert torch.allclose(output, ends, rtol=0, atol=33 * eps(33) * float(outputs.detach().abs().amax()))
    assert torch.allclose(h_n, states, rtol=0, atol=33 * eps(33) * float(states.detach().abs().amax()))


@pytest.mark.parametrize("features", [1, 6])
@pytest.mark.parametrize(("steps", "stride"), [(40, 3), (100, 40), (2, 3)])
def test_a_stride_leaves_outputs_out(features, steps, stride):
    ssm, x = randomised(UnitarySSM(features, N, batch_first=True, **DD)), inputs(steps, features).transpose(0, 1)
    outputs, states = ssm(x)
    ssm.stride = stride
    output, h_n = ssm(x)
    assert output.shape == (BATCH, steps // stride, N)
    assert torch.allclose(output, outputs[:, stride - 1 :: stride], rtol=0, atol=steps * eps(steps))
    assert torch.allclose(h_n, states, rtol=0, atol=eps(steps))


@pytest.mark.parametrize("options", [*OPTIONS[:3], {"num_layers": 2}], ids=str)
def test_streaming_is_the_same(options):
    ssm, x = randomised(UnitarySSM(2, N, **options, **DD)), inputs(50, 2)
    outputs, h_n = ssm(x)
    h, streamed = None, []
    for row in x:
        y, h = ssm.step(row, h)
        streamed.append(y)
    assert torch.allclose(torch.stack(streamed), outputs, rtol=0, atol=50 * eps(50))
    assert torch.allclose(h, h_n, rtol=0, atol=50 * eps(50))
    alone, state = ssm.step(x[0, 0])
    assert torch.allclose(alone, outputs[0, 0], rtol=0, atol=eps(1))
    assert state.shape == (ssm.num_layers, N)


def test_float32_keeps_its_precision_far_from_the_start():
    """Angles are multiplied in float64: in float32 those of 20,000 steps would be off by 1e-3."""
    ssm = UnitarySSM(1, N, decay=False, skip=False)
    x = torch.zeros(20_000, 1, 1)
    x[0] = 1
    exact = copy.deepcopy(ssm).double()
    assert torch.allclose(ssm(x)[0].double(), exact(x.double())[0], rtol=0, atol=100 * torch.finfo(torch.float32).eps)


REFUSED = [
    (lambda: UnitarySSM(0, N), ValueError, "expected input_size >= 1, got 0"),
    (lambda: UnitarySSM(1, N, dtype=torch.complex64), ValueError, "expected a real dtype.* got torch.complex64"),
    (lambda: UnitarySSM(1, N, num_layers=0), ValueError, "num_layers must be greater than zero"),
    (lambda: UnitarySSM(1, N, decay=0.9), TypeError, "decay should be of type bool, got: float"),
    (lambda: UnitarySSM(1, N, phases=(0, 1)), ValueError, r"expected phases to be two numbers 0 < low .* got \(0, 1\)"),
    (lambda: UnitarySSM(1, N, radii=(0.5, 1)), ValueError, r"expected radii below 1 \(decay=False is exactly 1\)"),
    (lambda: UnitarySSM(1, N, stride=0), ValueError, "expected stride >= 1, got 0"),
    (lambda: UnitarySSM(1, N, 2, stride=2), ValueError, "expected stride=1 with several layers or directions, got 2"),
    (lambda: UnitarySSM(1, N)(torch.zeros(3)), ValueError, "Expected input to be 2D or 3D, got 1D"),
    (lambda: UnitarySSM(1, N)(torch.zeros(0, 2, 1)), RuntimeError, "Expected sequence length to be larger than 0"),
    (lambda: UnitarySSM(1, N)(torch.zeros(3, 2, 2)), RuntimeError, "Expected 1, got 2"),
    (lambda: UnitarySSM(1, N)(torch.zeros(3, 2, 1, **DD)), ValueError, "expected input of the weight's dtype"),
    (lambda: UnitarySSM(1, N)(torch.zeros(3, 2, 1), torch.zeros(1, 2, N)), RuntimeError, "hx of dtype torch.complex64"),
    (
        lambda: UnitarySSM(1, N)(torch.zeros(3, 2, 1), torch.zeros(1, 3, N, dtype=torch.complex64)),
        RuntimeError,
        "Expected hidden size",
    ),
    (
        lambda: UnitarySSM(1, N)(torch.zeros(3, 1), torch.zeros(1, 3, N, dtype=torch.complex64)),
        RuntimeError,
        "For unbatched 2-D input, hx should also be 2-D",
    ),
    (
        lambda: UnitarySSM(1, N, stride=2)(pack_sequence([torch.zeros(3, 1)])),
        ValueError,
        "expected stride=1 with a PackedSequence, got 2",
    ),
    (lambda: UnitarySSM(1, N, bidirectional=True).step(torch.zeros(1)), ValueError, "expected one direction in step"),
    (lambda: UnitarySSM(1, N).step(torch.zeros(1, 2, 1)), ValueError, "Expected input to be 1D or 2D, got 3D"),
]


@pytest.mark.parametrize(("attempt", "error", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_refusals_say_what_was_expected(attempt, error, message):
    with pytest.raises(error, match=message):
        attempt()


def test_the_repr_names_what_is_not_the_default():
    assert repr(UnitarySSM(3, 4)) == "UnitarySSM(3, 4)"
    assert repr(UnitarySSM(3, 4, decay=False, stride=2)) == "UnitarySSM(3, 4, decay=False, stride=2)"


def test_a_state_that_is_no_tensor_is_refused_in_words():
    ssm, x = UnitarySSM(3, 4), torch.randn(5, 2, 3)
    with pytest.raises(TypeError, match="hx of UnitarySSM"):
        ssm(x, [torch.zeros(1, 2, 4)])
    with pytest.raises(TypeError, match=r"state of UnitarySSM\.step"):
        ssm.step(x[0], [torch.zeros(1, 2, 4)])
