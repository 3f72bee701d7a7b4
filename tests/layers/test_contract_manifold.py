"""What every layer promises where something else writes its weights: it is noticed, named, and repaired or refused."""

import dataclasses
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from entries import every_entry, loss_of, matrices, output_of, same_tensors, snapshot
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from unitary_layers import UnitaryLinear, UpdateRule, attach, nearest_unitary, projunn_step, retract_
from unitary_layers.testing import assert_unitary
from unitary_layers.training import unitary_weights


def by_a_torch_optimiser(module: nn.Module) -> None:
    """A user who has detached an optimiser and goes on with it."""
    parameters = [weight.parameter for weight in unitary_weights(module)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    attach(module, optimizer).remove()
    optimizer.step()
    for p in parameters:
        p.grad = None


def by_an_edit(module: nn.Module) -> None:
    with torch.no_grad():
        for weight in unitary_weights(module):
            weight.parameter.view(-1)[0] += 0.5


def by_a_vector(module: nn.Module) -> None:
    parameters = [weight.parameter for weight in unitary_weights(module)]
    vector_to_parameters(parameters_to_vector(parameters).detach() * 1.5, parameters)


def by_an_average(module: nn.Module) -> None:
    with torch.no_grad():
        for weight in unitary_weights(module):
            weight.parameter.lerp_(torch.zeros_like(weight.parameter), 0.3)


def by_initialisation(module: nn.Module) -> None:
    for weight in unitary_weights(module):
        nn.init.trunc_normal_(weight.parameter, std=0.2)


def by_another_parameter(module: nn.Module) -> None:
    for weight in list(unitary_weights(module)):
        *path, name = weight.name.split(".")
        setattr(module.get_submodule(".".join(path)), name, nn.Parameter(weight.parameter.detach() * 2))


def by_initialisation_of_data(module: nn.Module) -> None:
    """The start that DCGAN gives to each layer; torch counts no writes through ``.data``."""
    for weight in unitary_weights(module):
        nn.init.normal_(weight.parameter.data, 0.0, 0.02)


def by_a_teacher(module: nn.Module) -> None:
    """A network that follows another one."""
    for weight in unitary_weights(module):
        p = weight.parameter
        p.data = p.data * 0.9 + torch.zeros_like(p.data) * 0.1


def by_an_optimiser_of_the_old_style(module: nn.Module) -> None:
    for weight in unitary_weights(module):
        weight.parameter.data.add_(torch.full_like(weight.parameter, 0.1), alpha=-0.5)


DAMAGES = (by_a_torch_optimiser, by_an_edit, by_a_vector, by_an_average, by_initialisation, by_another_parameter)
THROUGH_DATA = (by_initialisation_of_data, by_a_teacher, by_an_optimiser_of_the_old_style)
DAMAGES += THROUGH_DATA
every_damage = pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)


def expected_after(module: nn.Module) -> list[torch.Tensor]:
    return [nearest_unitary(weight.matrix) for weight in unitary_weights(module)]


def damage_with_gradients(module: nn.Module, damage: Callable[[nn.Module], None]) -> None:
    """The damage, after which the unitary weights have the gradients that they had before, another parameter too."""
    kept = [weight.parameter.grad for weight in unitary_weights(module)]
    damage(module)
    for weight, grad in zip(unitary_weights(module), kept, strict=True):
        weight.parameter.grad = grad


@every_entry
@every_damage
def test_a_forward_in_training_notices_names_and_repairs(entry, damage):
    module = entry.make()
    names = list(matrices(module))
    damage(module)
    expected = expected_after(module)
    with pytest.warns(
        UserWarning, match=r"was written by something else: expected \|W\^H W - I\|_F <= .*, got"
    ) as seen:
        loss = loss_of(module, entry.input())
    for name in names:
        assert sum(f"{name.split('.')[-1]!r} (" in str(w.message) for w in seen) >= 1
    for weight, nearest in zip(unitary_weights(module), expected, strict=True):
        torch.testing.assert_close(weight.matrix, nearest)
    loss.backward()  # the weights were mended before they were used
    projunn_step(module)
    assert_unitary(module)


@every_entry
@every_damage
def test_a_step_notices_names_and_repairs_too(entry, damage):
    module = entry.make()
    names = list(matrices(module))
    loss_of(module, entry.input()).backward()
    damage_with_gradients(module, damage)
    with pytest.warns(UserWarning, match=r"was written by something else: expected .* <= .*, got \d") as seen:
        projunn_step(module)
    assert [next(name for name in names if f"{name!r} (" in str(w.message)) for w in seen] == names
    assert_unitary(module)


def average_of_steps(entry, averaged):
    """The average over three steps of a layer, which is not unitary."""
    module = entry.make(update=UpdateRule(lr=3.0))
    average = averaged(module)
    for seed in range(3):
        loss_of(module, entry.input(seed=seed)).backward()
        projunn_step(module)
        average.update_parameters(module)
    return average


@every_entry
@pytest.mark.parametrize(
    "averaged", [AveragedModel, lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.5))], ids=["swa", "ema"]
)
def test_an_average_that_is_trained_on_is_repaired(entry, averaged):
    average = average_of_steps(entry, averaged)
    expected = expected_after(average)
    with pytest.warns(UserWarning, match=r"'\S*' \(.* was written by something else: expected .* <= .*, got \d"):
        loss_of(average.module, entry.input())
    for weight, nearest in zip(unitary_weights(average), expected, strict=True):
        torch.testing.assert_close(weight.matrix, nearest)


@every_entry
def test_an_average_is_evaluated_as_it_comes_back_from_a_file(entry):
    average = average_of_steps(entry, AveragedModel)
    average.eval()
    before = snapshot(average.module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            evaluated = output_of(average.module, entry.input())
        output_of(average.module, entry.input()).abs().sum().backward()  # by the same weights, with a graph
    assert same_tensors(snapshot(average.module), before)
    loaded = entry.make().eval()
    with pytest.warns(UserWarning, match="is not unitary"):
        loaded.load_state_dict(average.module.state_dict())
    assert_unitary(loaded)
    torch.testing.assert_close(evaluated, output_of(loaded, entry.input()))


@every_entry
@every_damage
def test_it_can_be_refused_before_anything_changes(entry, damage):
    module = entry.make(update=UpdateRule(lr=0.3, off_manifold="raise"))
    loss_of(module, entry.input()).backward()
    damage_with_gradients(module, damage)
    before = snapshot(module.eval())
    module.train()
    for trigger in (lambda: loss_of(module, entry.input()), lambda: projunn_step(module)):
        with pytest.raises(RuntimeError, match=r"was written by something else.*no unitary weight was changed"):
            trigger()
    assert same_tensors(snapshot(module.eval()), before)
    module.train()
    retract_(module)
    loss_of(module, entry.input())


@every_entry
def test_what_is_not_finite_is_always_refused(entry):
    module = entry.make()
    with torch.no_grad():
        next(iter(unitary_weights(module))).parameter.view(-1)[0] = math.nan
    with pytest.raises(RuntimeError, match="got nan; no unitary weight was changed"):
        loss_of(module, entry.input())


@every_entry
def test_nothing_is_said_where_nothing_is_wrong(entry):
    """Training, evaluation, moves, copies and loading of unitary weights; and a second look costs no computation."""
    module = entry.make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            loss_of(module, entry.input()).backward()
            projunn_step(module)
        module.load_state_dict({k: v.clone() for k, v in module.state_dict().items()})
        loss_of(module, entry.input())
        module.double()
        loss_of(module, entry.input(torch.float64))
        module.float()
        loss_of(module, entry.input())
    by_an_edit(module)
    module.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # evaluation uses the nearest unitary one and writes nothing
        loss_of(module, entry.input())


def test_another_rule_changes_the_policy():
    layer = UnitaryLinear(4, 4)
    layer.update = dataclasses.replace(layer.update, off_manifold="raise")
    by_an_edit(layer)
    with pytest.raises(RuntimeError, match=r"unitary weight 'weight' \(4, 4\)"):
        layer(torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"off_manifold to be one of \('retract', 'raise'\), got 'ignore'"):
        UpdateRule(off_manifold="ignore")


def test_a_start_of_ones_own_is_looked_at():
    with pytest.warns(UserWarning, match=r"was filled by init=ones_ that gives no unitary matrix"):
        UnitaryLinear(3, 3, init=nn.init.ones_)(torch.randn(2, 3))


through_data = pytest.mark.parametrize("damage", THROUGH_DATA, ids=lambda f: f.__name__)


@pytest.mark.parametrize("damage", [d for d in THROUGH_DATA if d is not by_a_teacher], ids=lambda f: f.__name__)
def test_a_network_that_is_never_stepped_is_saved_as_it_should_be(damage):
    """Built, given another start, and saved without a forward pass; what is saved in evaluation is what is used."""
    net = nn.Sequential(UnitaryLinear(16, 16), nn.Linear(16, 16))
    damage(net)
    net.eval()
    assert torch.equal(net.state_dict()["0.weight"], net[0].weight)
    assert net[0].unitarity_error() > 0.1
    net.train()
    with pytest.warns(UserWarning, match="was written by something else") as seen:
        state = net.state_dict()
    assert len(seen) == 1
    assert torch.equal(state["0.weight"], net[0].weight)
    assert_unitary(net)


@through_data
def test_a_step_in_evaluation_notices_what_was_written_through_data(damage):
    layer = UnitaryLinear(16, 16).eval()
    damage(layer)
    layer(torch.randn(4, 16)).square().sum().backward()
    with pytest.warns(UserWarning, match="was written by something else"):
        layer.projunn_step()
    assert_unitary(layer)


def test_an_optimiser_of_the_old_style_is_reported_once():
    layer = UnitaryLinear(16, 16)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(4):
            layer(torch.randn(4, 16)).square().sum().backward()
            layer.weight.data.add_(layer.weight.grad, alpha=-0.01)
            layer.zero_grad()
    assert len(found) == 1
