"""Layers of signs and Hadamard matrices: their slow twins, how signs learn, and what torch does to a layer."""

import copy
import io
import itertools
import pickle

import numpy
import pytest
import torch
from closeness import assert_rounding
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.fx import symbolic_trace
from torch.nn.utils.rnn import pack_padded_sequence

from unitary_layers import HadamardLinear, HadamardRNN
from unitary_layers.testing import assert_isometry

N, BATCH, STEPS = 8, 3, 4
SHAPES = [(N, {}), (N, {"stages": 3}), (12, {"block": 4, "stages": 2}), (512, {}), (N, {"block": 1})]


def linear(**options: object) -> HadamardLinear:
    return HadamardLinear(N, stages=2, **options)


def rnn(**options: object) -> HadamardRNN:
    return HadamardRNN(N, 12, nonlinearity="identity", block=4, stages=2, bidirectional=True, **options)


every_layer = pytest.mark.parametrize("build", [linear, rnn], ids=["linear", "rnn"])


def slow_matrix(latent: Tensor, block: int | None) -> Tensor:
    """The definition, in float64: a row of H is a character of the bits of its number."""
    n = latent.size(-1)
    m, w = block or n, torch.eye(n, dtype=torch.float64)
    h = torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(m)] for i in range(m)], dtype=torch.float64)
    for stage in latent.double():
        w = torch.where(stage >= 0, 1.0, -1.0).double().diag() @ torch.block_diag(*[h / m**0.5] * (n // m)) @ w
    return w


def output_of(module: nn.Module, x: Tensor) -> Tensor:
    result = module(x)
    return torch.cat([part.flatten() for part in result]) if isinstance(result, tuple) else result


def sample(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(STEPS, BATCH, N, dtype=dtype)


@pytest.mark.parametrize(("n", "options"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_layer_is_its_slow_twin(n, options, dtype):
    layer, x = HadamardLinear(n, dtype=dtype, **options), torch.randn(2, BATCH, n, dtype=dtype)
    nn.init.normal_(layer.bias)
    w = slow_matrix(layer.latent, options.get("block"))
    assert_rounding(layer.matrix.double(), w, n=n, c=4 * torch.finfo(dtype).eps / torch.finfo(torch.float64).eps)
    assert_rounding(layer(x), (x.double() @ w.mT + layer.bias).to(dtype), n=n)
    assert_isometry(layer, (n,), dtype=dtype)


@pytest.mark.parametrize("form", ["padded", "packed", "unbatched"])
@pytest.mark.parametrize(("n", "options"), SHAPES)
def test_a_recurrent_layer_is_torchs_with_the_slow_matrix(n, options, form):
    torch.manual_seed(0)
    common = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
    layer, twin = HadamardRNN(3, n, **common, **options), nn.RNN(3, n, **common)
    state = {k: v for k, v in layer.state_dict().items() if not k.startswith("latent")}
    for name in layer.packed():
        matrix = slow_matrix(getattr(layer, name), options.get("block"))
        state[name.replace("latent", "weight")] = matrix
    twin.load_state_dict(state)
    x = torch.randn(STEPS, BATCH, 3, dtype=torch.float64)
    x = {"padded": x, "packed": pack_padded_sequence(x, [4, 2, 1]), "unbatched": x[:, 0]}[form]
    h_0 = torch.randn(4, BATCH, n, dtype=torch.float64)
    h_0 = h_0[:, 0] if form == "unbatched" else h_0
    results = []
    for rnn_ in (layer, twin):
        output, h_n = rnn_(x, h_0)
        output = output.data if form == "packed" else output
        (output.square().sum() + h_n.sum()).backward()
        results.append((output, h_n, rnn_.weight_ih_l0.grad, rnn_.bias_hh_l1.grad))
    for mine, theirs in zip(*results, strict=True):
        assert_rounding(mine, theirs, n=n * STEPS)
    # a sign is a factor of a row of its stage's matrix; of one stage alone, row i of W is s_i times that of H
    if layer.stages == 1:
        w = layer.recurrent_matrix(1, reverse=True).detach()
        expected = (twin.weight_hh_l1_reverse.grad * w * layer.signs("latent_hh_l1_reverse").mT).sum(-1)
        found = layer.latent_hh_l1_reverse.grad[0]
        outward = layer.latent_hh_l1_reverse.detach()[0].abs() >= 1
        assert not outward.any()
        assert_rounding(found, expected, n=n * STEPS)


def test_the_sign_of_zero_is_one_and_gradients_pass_straight_through():
    layer = HadamardLinear(4, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.latent.copy_(torch.tensor([[0.0, -0.0, -1e-300, 0.5]], dtype=torch.float64))
    assert layer.signs("latent").tolist() == [[1, 1, -1, 1]]
    signs = layer.signs("latent")
    (signs * torch.tensor([1.0, 2, 3, 4])).sum().backward()
    assert layer.latent.grad.tolist() == [[1, 2, 3, 4]]


def test_a_latent_goes_no_further_out_than_one_but_comes_back():
    layer = HadamardLinear(4, bias=False)
    with torch.no_grad():
        layer.latent.copy_(torch.tensor([[1.0, 1.0, -1.5, -1.5]]))
    layer.signs("latent").backward(torch.tensor([[-1.0, 1.0, 1.0, -1.0]]))
    assert layer.latent.grad.tolist() == [[0, 1, 0, -1]]


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=["sgd", "adam"])
def test_an_optimiser_finds_the_signs(make):
    teacher, layer = HadamardLinear(16, bias=False), HadamardLinear(16, bias=False)
    assert not torch.equal(teacher.matrix, layer.matrix)
    optimizer = make(layer.parameters(), lr=0.1)
    for _ in range(60):
        x = torch.randn(32, 16)
        optimizer.zero_grad()
        (layer(x) - teacher(x)).square().mean(0).sum().backward()
        optimizer.step()
    assert torch.equal(teacher.matrix, layer.matrix)
    assert layer.latent.abs().max() < 1.5


@every_layer
def test_packed_signs_are_numpys_and_travel_back(build):
    layer, other, x = build(), build(), sample()
    packed = layer.packed()
    for name, bits in packed.items():
        signs = layer.signs(name).detach().numpy()
        assert (bits.numpy() == numpy.packbits(signs > 0, axis=-1)).all()
    rest = {k: v for k, v in layer.state_dict().items() if k not in packed}
    other.load_state_dict(rest, strict=False)
    other.load_packed_(packed)
    assert torch.equal(output_of(other, x), output_of(layer, x))
    for wrong in ({}, {name: bits[:1] for name, bits in packed.items()}, {k: b.int() for k, b in packed.items()}):
        with pytest.raises(ValueError, match=r"expected packed signs .* nothing was loaded"):
            other.load_packed_(wrong)


def test_sizes_without_a_hadamard_matrix_are_refused():
    for build, error, message in [
        (lambda: HadamardLinear(12), ValueError, "features to be a power of two.*got 12; block=m takes one"),
        (lambda: HadamardLinear(12, block=8), ValueError, "features to be a multiple of block=8, got 12"),
        (lambda: HadamardRNN(2, 12, block=6), ValueError, "block to be a power of two.*got 6"),
        (lambda: HadamardRNN(2, 12), ValueError, "hidden_size to be a power of two.*got 12"),
        (lambda: HadamardRNN(2, 8, block=0), ValueError, "block >= 1, got 0"),
        (lambda: HadamardLinear(8, stages=0), ValueError, "stages >= 1, got 0"),
        (lambda: HadamardLinear(8, stages=1.5), TypeError, "stages >= 1, an integer, got 1.5"),
        (lambda: HadamardRNN(2, 8, dtype=torch.complex64), ValueError, "real dtype, got torch.complex64"),
        (lambda: HadamardLinear(8)(torch.randn(2, 4)), ValueError, r"input \(\.\.\., 8\), got \(2, 4\)"),
        (lambda: HadamardLinear(8)(torch.randn(2, 8).double()), RuntimeError, "got torch.float64"),
        (lambda: HadamardLinear(8)(torch.tensor(1.0)), ValueError, r"got \(\)"),
    ]:
        with pytest.raises(error, match=message):
            build()


@every_layer
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_latents_never_fall_below_float32(build, half):
    layer, x = build(), sample()
    expected, latents = output_of(layer, x), [p.clone() for name, p in layer.named_parameters() if "latent" in name]
    with torch.autocast("cpu", torch.bfloat16):
        assert output_of(layer, x).dtype == torch.bfloat16
    layer.to(half)
    kept = [p for name, p in layer.named_parameters() if "latent" in name]
    assert all(torch.equal(a, b) for a, b in zip(latents, kept, strict=True))
    y = output_of(layer, x.to(half))
    assert y.dtype == half
    assert (y - expected).abs().max() <= 16 * STEPS * torch.finfo(half).eps * expected.abs().max()
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in kept)
    layer.double()
    assert {p.dtype for p in layer.parameters()} == {torch.float64}


@every_layer
def test_copies_files_and_graphs(build):
    layer, x = build(), sample()
    expected, buffer = output_of(layer, x), io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    loaded = build()
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    meta = build(device="meta")
    meta.load_state_dict(layer.state_dict(), assign=True)
    for twin in (loaded, meta, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), symbolic_trace(layer)):
        assert torch.equal(output_of(twin, x), expected)
    assert layer.unitarity_error() == 0
    layer.projunn_step()  # there is nothing to step
    assert torch.equal(output_of(layer, x), expected)


@pytest.mark.parametrize(("build", "strict"), [(linear, False), (rnn, True)], ids=["linear", "rnn, strict"])
def test_an_exported_layer_takes_any_batch(build, strict):
    layer, x = build(), sample()
    program = torch.export.export(layer, (x,), dynamic_shapes=({1: torch.export.Dim("batch", min=2)},), strict=strict)
    for inputs in (x, torch.cat([x, x], 1)):
        assert_rounding(output_of(program.module(), inputs), output_of(layer, inputs), n=N)


def test_a_compiled_layer_learns_the_same():
    torch.compiler.reset()
    layer, x = rnn(), sample()
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    for module in (layer, compiled):
        output_of(module, x).square().sum().backward()
    for mine, theirs in zip(compiled.parameters(), layer.parameters(), strict=True):
        assert_rounding(mine.grad, theirs.grad, n=N * N * STEPS)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")  # torch's own use of it
@every_layer
def test_transforms_of_torch_see_the_formula(build):
    layer, x = build(), sample()
    state = dict(layer.named_parameters())
    name = next(k for k in state if "latent" in k)

    def loss(latent: Tensor, x: Tensor) -> Tensor:
        return output_of(lambda x: functional_call(layer, state | {name: latent}, (x,)), x).square().sum()

    output_of(layer, x).square().sum().backward()
    expected = getattr(layer, name).grad
    assert_rounding(grad(loss)(state[name].detach(), x), expected, n=N * N * STEPS)
    each = vmap(grad(loss), in_dims=(None, 1))(state[name].detach(), x.unsqueeze(2))
    assert_rounding(each.sum(0), expected, n=N * N * STEPS)
    direction = torch.randn_like(expected)
    _, slope = jvp(lambda latent: loss(latent, x), (state[name].detach(),), (direction,))
    assert_rounding(slope, (direction * expected).sum(), n=N * N * STEPS)


def test_input_weights_of_few_bits():
    layer = HadamardRNN(3, N, bias=False, weight_bits=4)
    plain = HadamardRNN(3, N, bias=False)
    codes, scale = layer.eval().integer()
    assert codes.dtype == torch.int8
    assert codes.abs().max() <= 7
    plain.load_state_dict(layer.state_dict() | {"weight_ih_l0": codes * scale})
    x = torch.randn(STEPS, BATCH, 3)
    results = [rnn_(x)[0] for rnn_ in (layer, plain)]
    assert_rounding(*results, n=N * STEPS)
    for result in results:
        result.square().sum().backward()
    assert_rounding(layer.weight_ih_l0.grad, plain.weight_ih_l0.grad, n=N * N * STEPS)  # straight through
    with pytest.raises(ValueError, match="expected a layer with weight_bits, got a HadamardRNN without"):
        plain.integer()
    with pytest.raises(ValueError, match="weight_bits to be None or an integer from 2 to 8, got 1"):
        HadamardRNN(3, N, weight_bits=1)


@pytest.mark.parametrize(("n", "options"), SHAPES)
def test_the_last_states_alone(n, options):
    layer = HadamardRNN(1, n, nonlinearity="identity", dtype=torch.float64, return_sequence=False, **options)
    twin = HadamardRNN(1, n, nonlinearity="identity", dtype=torch.float64, **options)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(STEPS, 50, 1, dtype=torch.float64)  # more sequences than features: by responses to impulses
    (output, h_n), (states, _) = layer(x), twin(x)
    assert torch.equal(output, h_n[-1])
    for result in (output, states[-1]):
        result.square().sum().backward()
    assert_rounding(output, states[-1], n=n * STEPS)
    for mine, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
        assert_rounding(mine.grad, theirs.grad, n=50 * n * STEPS)


def test_what_is_printed():
    assert (
        repr(HadamardLinear(12, bias=False, block=4, stages=2)) == "HadamardLinear(12, bias=False, block=4, stages=2)"
    )
    layer = HadamardRNN(3, N, nonlinearity="identity", stages=2, weight_bits=4)
    assert layer.extra_repr() == "3, 8, nonlinearity='identity', stages=2, weight_bits=4"
    assert [len(weights) for weights in layer.all_weights] == [4]
    assert all(any(p is q for q in layer.parameters()) for p in itertools.chain(*layer.all_weights))
