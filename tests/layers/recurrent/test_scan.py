"""The recurrence as one node, against the loop that autograd records, and against Python lists of single states."""

import pytest
import torch
from closeness import assert_rounding
from torch import Tensor, nn
from torch.autograd import gradcheck

from unitary_layers import ModReLU, haar_unitary
from unitary_layers.layers.recurrent.fused import FUSED, kind_of
from unitary_layers.layers.recurrent.linear import are_few
from unitary_layers.layers.recurrent.operator import scan_operator
from unitary_layers.layers.recurrent.scan import loop
from unitary_layers.layers.recurrent.scan import scan as scan_packed

N = 4
SIZES = ([3, 3, 3], [4, 2, 2, 1], [1], [5, 1], [2, 2, 1, 1], [3, 3])
CASES = [
    (f, d)
    for f in sorted(FUSED)
    for d in (torch.float64, torch.complex128, torch.float32)
    if (f, d.is_complex) != ("relu", True)
]
READS = {"output": (1.0, 0.0), "h_n": (0.0, 1.0), "both": (0.7, -1.3)}

cases = pytest.mark.parametrize(("nonlinearity", "dtype"), CASES, ids=lambda v: str(v).removeprefix("torch."))
sizes = pytest.mark.parametrize("sizes", SIZES, ids=str)
ways = pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])


def make_activation(nonlinearity: str, dtype: torch.dtype) -> nn.Module:
    if nonlinearity != "modrelu":
        return {"tanh": nn.Tanh, "relu": nn.ReLU, "identity": nn.Identity}[nonlinearity]()
    activation = ModReLU(N, dtype=dtype)
    with torch.no_grad():  # on both sides of zero: some states are cut, some grow
        activation.bias.copy_(torch.tensor([-1.5, -0.2, 0.0, 0.4]))
    return activation


def make_leaves(sizes: list[int], dtype: torch.dtype, activation: nn.Module) -> dict[str, Tensor]:
    scale = 0.3 if dtype.is_complex and isinstance(activation, nn.Tanh) else 1.0  # away from the poles of tanh
    leaves = {
        "projected": scale * torch.randn(sum(sizes), N, dtype=dtype),
        "h_0": scale * torch.randn(sizes[0], N, dtype=dtype),
        "weight": haar_unitary(N, dtype=dtype),
    }
    return {k: v.requires_grad_() for k, v in leaves.items()} | dict(activation.named_parameters())


def scan(
    projected: Tensor, sizes: list[int], h_0: Tensor, weight: Tensor, activation: nn.Module, reverse: bool = False
):
    """As one node, of a padded batch where all sequences are as long."""
    lengths = len(sizes) if sizes[0] == sizes[-1] else torch.tensor(sizes)
    return scan_packed(projected, lengths, h_0, weight, activation, reverse=reverse)


def operate(projected: Tensor, sizes: list[int], h_0: Tensor, weight: Tensor, activation: nn.Module, reverse: bool):
    """As the operator that a compiled graph has in the node's place."""
    batch_sizes = None if sizes[0] == sizes[-1] else torch.tensor(sizes)
    bias = getattr(activation, "bias", None)
    return scan_operator(projected, h_0, weight, bias, None, batch_sizes, kind_of(activation, weight), reverse)


def one_by_one(projected: Tensor, sizes: list[int], h_0: Tensor, weight: Tensor, activation: nn.Module, reverse: bool):
    """Sequence by sequence and step by step: the definition."""
    starts = [sum(sizes[:t]) for t in range(len(sizes))]
    rows, finals = [None] * sum(sizes), []
    for sequence in range(sizes[0]):
        times = [t for t in range(len(sizes)) if sequence < sizes[t]]
        h = h_0[sequence]
        for t in reversed(times) if reverse else times:
            h = activation(projected[starts[t] + sequence] + weight @ h)
            rows[starts[t] + sequence] = h
        finals.append(h)
    return torch.stack(rows), torch.stack(finals)


def gradients(run, sizes, leaves, activation, reverse, read, of=None) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Outputs of a way of running the recurrence, and the gradients of a loss that reads the one, the other or both."""
    output, h_n = run(leaves["projected"], sizes, leaves["h_0"], leaves["weight"], activation, reverse=reverse)
    generator = torch.Generator().manual_seed(3)
    loss = 0.0
    for factor, result in zip(READS[read], (output, h_n), strict=True):
        direction = torch.randn(result.shape, dtype=result.dtype, generator=generator)
        if factor:
            loss = loss + factor * (direction * result).sum()
    loss = loss.real if loss.is_complex() else loss
    return output, h_n, list(torch.autograd.grad(loss, list((of or leaves).values())))


@cases
@sizes
@ways
def test_node_loop_and_definition_agree(nonlinearity, dtype, sizes, reverse):
    assert_agree(nonlinearity, dtype, sizes, reverse)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.float32], ids=str)
@ways
def test_pairs_of_steps_agree_with_the_definition(dtype, reverse):
    assert_agree("identity", dtype, [2] * 18, reverse)


def assert_agree(nonlinearity: str, dtype: torch.dtype, sizes: list[int], reverse: bool) -> None:
    activation = make_activation(nonlinearity, dtype)
    leaves = make_leaves(sizes, dtype, activation)
    is_fused = not (nonlinearity == "modrelu" and dtype.is_complex)
    assert kind_of(activation, leaves["weight"]) == (nonlinearity if is_fused else None)
    for read in READS:
        *values, expected = gradients(one_by_one, sizes, leaves, activation, reverse, read)
        for run in (scan, loop, *([operate] if is_fused else [])):
            *found, actual = gradients(run, sizes, leaves, activation, reverse, read)
            for mine, twin in zip([*found, *actual], [*values, *expected], strict=True):
                assert_rounding(mine, twin, n=N * sum(sizes))


def test_few_numbers_a_step_and_many_steps_go_by_pairs():
    def few(sizes: list[int], n: int, dtype: torch.dtype = torch.float32) -> bool:
        return are_few(sizes, torch.empty(sum(sizes), n, dtype=dtype))

    assert few([2] * 18, N)
    assert few([1] * 9, N)
    assert few([16] * 100, 64)
    assert not few([17] * 100, 64)  # many products
    assert not few([65] * 100, 16)  # many numbers
    assert not few([1] * 8, N)  # few steps
    assert not few([2] * 18 + [1], N)  # of different lengths
    assert not few([0] * 18, N)
    assert not few([2] * 18, N, torch.bfloat16)


@pytest.mark.parametrize("nonlinearity", sorted(FUSED))
def test_the_fused_ones_are_one_node(nonlinearity):
    activation = make_activation(nonlinearity, torch.float32)
    leaves = make_leaves([2, 2, 1], torch.float32, activation)
    output, h_n = scan(leaves["projected"], [2, 2, 1], leaves["h_0"], leaves["weight"], activation)
    assert output.grad_fn is h_n.grad_fn
    assert {f for f, _ in output.grad_fn.next_functions if f and f.name() != "torch::autograd::AccumulateGrad"} == set()


def test_what_is_not_known_runs_as_a_loop():
    class Tanh(nn.Tanh):  # a subclass may have another forward
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    activation = Tanh()
    leaves = make_leaves([3, 1], torch.float64, activation)
    arguments = (leaves["projected"], [3, 1], leaves["h_0"], leaves["weight"], activation)
    assert kind_of(activation, leaves["weight"]) is None
    for mine, twin in zip(scan(*arguments), one_by_one(*arguments, reverse=False), strict=True):
        assert_rounding(mine, twin, n=N * 4)


@pytest.mark.parametrize(("nonlinearity", "dtype"), [c for c in CASES if c[1] != torch.float32], ids=str)
@pytest.mark.parametrize("sizes", [[2, 2], [3, 1]], ids=str)
@ways
def test_gradcheck(nonlinearity, dtype, sizes, reverse):
    activation = make_activation(nonlinearity, dtype)
    leaves = make_leaves(sizes, dtype, activation)

    def run(projected: Tensor, h_0: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Tensor, Tensor]:
        # a bias is the activation's own, which gradcheck changes in place
        return scan(projected, sizes, h_0, weight, activation, reverse=reverse)

    assert gradcheck(run, tuple(leaves.values()))


@pytest.mark.parametrize("nonlinearity", sorted(FUSED))
def test_double_backward_is_refused(nonlinearity):
    activation = make_activation(nonlinearity, torch.float64)
    leaves = make_leaves([2, 1], torch.float64, activation)
    output, _ = scan(leaves["projected"], [2, 1], leaves["h_0"], leaves["weight"], activation)
    for loss in (output.square().sum(), output.sum()):  # of the second, what arrives has no graph
        (first,) = torch.autograd.grad(loss, leaves["weight"], create_graph=True)
        with pytest.raises(RuntimeError, match="first derivatives alone"):
            first.sum().backward(retain_graph=True)
        for leaf in leaves.values():
            with pytest.raises(RuntimeError, match="first derivatives alone"):
                torch.autograd.grad(first.sum(), leaf, retain_graph=True, allow_unused=True)


@pytest.mark.parametrize("frozen", ["projected", "h_0", "weight", "bias"])
@pytest.mark.parametrize("sizes", [[2, 2], [3, 2]], ids=str)
def test_what_is_frozen_gets_no_gradient_and_the_others_theirs(frozen, sizes):
    activation = make_activation("modrelu", torch.float64)
    leaves = make_leaves(sizes, torch.float64, activation)
    *_, expected = gradients(loop, sizes, leaves, activation, False, "both")
    position = list(leaves).index(frozen)
    leaves[frozen].requires_grad_(False)
    rest = {k: v for k, v in leaves.items() if k != frozen}
    output, h_n = scan(leaves["projected"], sizes, leaves["h_0"], leaves["weight"], activation)
    (output.sum() + h_n.sum()).backward()
    assert leaves[frozen].grad is None
    assert all(leaf.grad is not None for leaf in rest.values())
    *_, actual = gradients(scan, sizes, leaves, activation, False, "both", of=rest)
    for mine, twin in zip(actual, expected[:position] + expected[position + 1 :], strict=True):
        assert_rounding(mine, twin, n=N * sum(sizes))


@pytest.mark.parametrize("nonlinearity", sorted(FUSED))
def test_inputs_are_left_as_they_are(nonlinearity):
    activation = make_activation(nonlinearity, torch.float32)
    leaves = make_leaves([3, 2], torch.float32, activation)
    before = [leaf.detach().clone() for leaf in leaves.values()]
    output, h_n = scan(leaves["projected"], [3, 2], leaves["h_0"], leaves["weight"], activation)
    kept, grad_output, grad_h_n = output.detach().clone(), torch.ones_like(output), torch.ones_like(h_n)
    torch.autograd.backward([output, h_n], [grad_output, grad_h_n])
    assert all(torch.equal(a, b) for a, b in zip(leaves.values(), before, strict=True))
    assert torch.equal(output, kept)
    assert torch.equal(grad_output, torch.ones_like(output))
    assert torch.equal(grad_h_n, torch.ones_like(h_n))
