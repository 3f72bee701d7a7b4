"""What every layer promises under torch.func and torch.jit.trace: to be the formula of its docstring, no more."""

import copy
import pickle
import warnings

import pytest
import torch
from closeness import assert_rounding
from entries import (
    ENTRIES,
    N,
    every_entry,
    gradient_of,
    loss_of,
    matrices,
    output_of,
    same_tensors,
    snapshot,
    unchanged,
)
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from unitary_layers import UnitaryLinear, UnitaryModule, projunn_step
from unitary_layers.layers.base.forward import own_parameter
from unitary_layers.testing import assert_unitary
from unitary_layers.training import unitary_weights

SUM = N * N  # of so many terms are the entries of the longest product here


def dense_twin(module: nn.Module) -> nn.Module:
    """A copy that leaves its gradients in ``.grad``."""
    twin = copy.deepcopy(module)
    for layer in twin.modules():
        if isinstance(layer, UnitaryModule):
            layer.gradient = "dense"
    return twin


def called(module: nn.Module, state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The output of :func:`functional_call`, joined with the final states of a recurrent layer."""
    return output_of(lambda x: functional_call(module, state, (x,)), x)


def loss_by(module: nn.Module, state: dict[str, Tensor], x: Tensor) -> Tensor:
    return called(module, state, x).abs().square().mean() + called(module, state, x).real.sum()


def gradients(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The dense gradients of :func:`loss_by` by the autograd of torch."""
    twin = dense_twin(module)
    loss_by(twin, {}, x).backward()
    return {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in twin.named_parameters()}


def assert_nothing_was_noted(module: nn.Module) -> None:
    """No gradient was collected, no step counted, and training goes on as if nothing had been."""
    assert all(gradient_of(weight) is None and weight.count == 0 for weight in unitary_weights(module))


SUBSTITUTES = {
    "tensors": lambda p: p.detach().clone().requires_grad_(),
    "parameters": lambda p: nn.Parameter(p.clone()),
}
every_substitute = pytest.mark.parametrize("substitute", SUBSTITUTES.values(), ids=SUBSTITUTES)


@every_entry
@every_substitute
def test_functional_call_uses_the_tensors_that_it_is_given(entry, substitute):
    module, other, x = entry.make(), entry.make(), entry.input()
    state = {k: substitute(p) for k, p in other.named_parameters()}
    with unchanged(module):
        assert torch.equal(called(module, state, x), output_of(other, x))
        loss_by(module, state, x).backward()
    for name, expected in gradients(other, x).items():
        found = state[name].grad
        assert_rounding(torch.zeros_like(expected) if found is None else found, expected, n=SUM)
    assert_nothing_was_noted(module)


@every_entry
@every_substitute
def test_tensors_that_are_not_unitary_are_no_business_of_the_layer(entry, substitute):
    module, x = entry.make(), entry.input()
    doubled = {k: substitute(2 * p.detach()) for k, p in module.named_parameters()}
    before = {k: p.detach().clone() for k, p in doubled.items()}
    with warnings.catch_warnings(), unchanged(module):
        warnings.simplefilter("error")
        called(module, doubled, x)
        grad(lambda state: loss_by(module, state, x))(doubled)
    assert same_tensors(doubled, before)
    assert_nothing_was_noted(module)


REPLACED = {
    "as it is": lambda module: module,
    "cast": lambda module: module.double().float(),
    "copied": copy.deepcopy,
    "pickled": lambda module: pickle.loads(pickle.dumps(module)),
    "assigned": lambda module: module.load_state_dict(snapshot(module), assign=True) and module,
    "materialised": lambda module: module.to("meta").to_empty(device="cpu"),
}


@pytest.mark.parametrize("replace", REPLACED.values(), ids=REPLACED)
def test_a_layer_knows_its_own_parameters_whatever_replaced_them(replace):
    module = replace(UnitaryLinear(N, N, gradient="factored"))
    assert own_parameter(module, "weight") is module.weight
    module.reset_parameters()
    functional_call(module, {"weight": nn.Parameter(module.weight.clone())}, (torch.randn(2, N),))
    module(torch.randn(2, N)).square().sum().backward()
    assert all(gradient_of(weight) is not None for weight in unitary_weights(module))


@pytest.mark.parametrize("gradient", ["dense", "factored"])
def test_a_parametrised_weight_has_a_dense_gradient(gradient):
    module = UnitaryLinear(N, N, gradient=gradient)
    torch.nn.utils.parametrize.register_parametrization(module, "weight", nn.Identity())
    with pytest.warns(UserWarning, match="'weight' of ParametrizedUnitaryLinear is computed from other parameters"):
        module(torch.randn(2, N)).square().sum().backward()
    assert module.parametrizations.weight.original.grad is not None


@pytest.mark.parametrize("gradient", ["dense", "factored"])
def test_a_replica_of_data_parallel_runs(gradient):
    module, x = UnitaryLinear(N, N, gradient=gradient), torch.randn(2, N)
    replica = module._replicate_for_data_parallel()
    for name, parameter in module.named_parameters():
        setattr(replica, name, parameter.clone())  # as torch.nn.parallel.replicate does
    expected = module(x).detach()
    replica(x).square().sum().backward()
    assert torch.equal(replica(x), expected)
    assert module.weight.grad is not None


@every_entry
def test_grad_is_that_of_autograd_without_a_trace(entry):
    module, x = entry.make(), entry.input()
    parameters = dict(module.named_parameters())
    with unchanged(module):
        found = grad(lambda state: loss_by(module, state, x))(parameters)
    for name, expected in gradients(module, x).items():
        assert_rounding(found[name], expected, n=SUM)
    assert_nothing_was_noted(module)
    before = matrices(module)
    loss_of(module, x).backward()
    projunn_step(module)
    assert all(not torch.equal(after, before[name]) for name, after in matrices(module).items())


@every_entry
def test_gradients_of_each_sample_by_vmap(entry):
    module, x = entry.make(), entry.input()
    samples = torch.stack([x, 2 * x, -x])
    parameters = dict(module.named_parameters())
    with unchanged(module):
        found = vmap(grad(lambda state, x: loss_by(module, state, x)), in_dims=(None, 0))(parameters, samples)
    for i, sample in enumerate(samples):
        for name, expected in gradients(module, sample).items():
            assert_rounding(found[name][i], expected, n=SUM)
    assert_nothing_was_noted(module)


@every_entry
def test_a_transform_neither_repairs_nor_reports(entry):
    module, x = entry.make(), entry.input()
    with torch.no_grad():
        next(iter(unitary_weights(module))).parameter.view(-1)[0] += 0.5
    with warnings.catch_warnings(), unchanged(module):
        warnings.simplefilter("error")
        found = vmap(lambda x: output_of(module, x))(torch.stack([x, x]))
    state = {name: p.detach().clone() for name, p in module.named_parameters()}  # for which no layer answers
    assert_rounding(found[1], called(module, state, x), n=SUM)


@every_entry
def test_vmap_over_an_ensemble_of_layers(entry):
    modules, x = [entry.make() for _ in range(3)], entry.input()
    states = stack_module_state(modules)
    for base in (modules[0], copy.deepcopy(modules[0]).to("meta")):  # the latter is torch's own recipe
        found = vmap(lambda *state, base=base: called(base, state, x))(*states)
        for output, module in zip(found, modules, strict=True):
            assert_rounding(output, output_of(module, x), n=SUM)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")  # torch's own use of it
@every_entry
def test_a_jacobian_vector_product(entry):
    module = entry.make(torch.float64)
    x, v = entry.input(torch.float64), entry.input(torch.float64, seed=6)
    _, found = jvp(lambda x: output_of(module, x), (x,), (v,))
    if entry.is_complex:  # by the real way of it: the dense Jacobian needs real numbers
        step = 1e-6
        expected = (output_of(module, x + step * v) - output_of(module, x - step * v)) / (2 * step)
        assert (found - expected).abs().max() <= 1e4 * step**2
    else:
        jacobian = torch.autograd.functional.jacobian(lambda x: output_of(dense_twin(module), x), x)
        assert_rounding(found, (jacobian * v).flatten(found.ndim).sum(-1), n=SUM)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated", "ignore::torch.jit.TracerWarning")
@every_entry
def test_a_traced_layer_returns_the_same_and_has_dense_gradients(entry):
    module, x = entry.make(), entry.input()
    traced = torch.jit.trace(module, (x,))
    assert_nothing_was_noted(module)
    other = entry.input(seed=6)
    assert_rounding(output_of(traced, other), output_of(module, other), n=SUM)
    output_of(traced, other).abs().square().sum().backward()
    assert all(weight.parameter.grad is not None for weight in unitary_weights(module))
    projunn_step(module)  # torch's trace shares the parameters
    assert_unitary(module)


def test_compiled_transforms_are_the_same():
    entry = next(e for e in ENTRIES if e.name == "rnn-modrelu")
    module, x = entry.make(), entry.input()
    parameters = dict(module.named_parameters())
    plain = grad(lambda state: loss_by(module, state, x))
    torch.compiler.reset()
    found = torch.compile(plain, backend="eager")(parameters)
    torch.compiler.reset()
    for name, expected in plain(parameters).items():
        assert_rounding(found[name], expected, n=SUM)
    assert same_tensors(dict(module.named_parameters()), parameters)
