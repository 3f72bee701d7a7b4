"""Ranks hold bit-identical weights, those of one process on the joint batch, and move O(k n) numbers."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.multiprocessing as mp
from ranks import STEPS, N, batch, loss_of, model
from torch import Tensor

from unitary_layers import ProjUNN, attach, projunn_step, share_gradients
from unitary_layers.projunn import DenseGradient, unitary_weights
from unitary_layers.projunn.moments import PROBES
from unitary_layers.testing import assert_unitary

TRAINED = ("plain", "shared", "shared_factored", "shared_preconditioned", "shared_power", "shared_svd")


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw in each scenario."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(ranks.work, (request.param, folder), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


def assert_same(states: list[dict[str, Tensor]]) -> None:
    for state in states[1:]:
        assert all(torch.equal(state[name], value) for name, value in states[0].items())


def assert_close(state: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, value in other.items():
        tolerance = 1e4 * N * STEPS * torch.finfo(torch.float64).eps * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(state[name], value, rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


def joint(scenario: str) -> dict[str, Tensor]:
    """One process on the joint batch."""
    rule = {"shared_preconditioned": {"precondition": True}, "shared_power": {"sampler": "power", "rank": 2}}
    rule["shared_svd"] = {"sampler": "svd"}
    net = model("factored" if scenario in TRAINED[2:4] else "dense", **rule.get(scenario, {}))
    return ranks.train(net, net)


@pytest.mark.parametrize("scenario", TRAINED)
def test_ranks_agree_bit_for_bit_and_with_one_process(found, scenario):
    states = [rank[scenario] if scenario == "plain" else rank[scenario][0] for rank in found]
    assert_same(states)
    assert_close(states[0], joint(scenario))
    net = model()
    net.load_state_dict({name: v for name, v in states[0].items() if name in net.state_dict()})
    assert_unitary(net)


def test_thin_products_cross_the_wire(found):
    k, weights = 1, 2
    for rank in found:
        # Two products of k columns, and one number that says which weights have a gradient.
        assert rank["shared"][1] == STEPS * weights * (2 * k * N + 1)
        assert rank["shared_factored"][1] == STEPS * weights * 2 * k * N
        assert rank["shared_preconditioned"][1] == STEPS * weights * 2 * (k + PROBES) * N
        assert rank["shared_power"][1] == STEPS * weights * (2 * 2 * N + 1)
        assert rank["shared_svd"][1] > STEPS * weights * N * N


def test_accumulation_without_synchronisation(found):
    assert_same([rank["accumulated"] for rank in found])
    net, world = model(), len(found)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attach(net, optimizer)
    for step in range(10):
        for rank in range(world):
            x = batch(step)[rank::world]
            ((loss_of(net, x[:1]) + loss_of(net, x[1:])) / world).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_close(found[0]["accumulated"], net.state_dict())


def test_the_optimiser_has_the_mean_gradient_in_every_direction(found):
    for i, direction in enumerate(("rmsprop", "moments", "momentum")):
        states = [rank["optimised"][i] for rank in found]
        assert_same(states)
        net = model()
        optimizer = ProjUNN(net.parameters(), lr=0.01, direction=direction, momentum=0.5)
        for step in range(10):
            optimizer.zero_grad()
            loss_of(net, batch(step)).backward()
            optimizer.step()
        assert_close(states[0], net.state_dict())


def test_a_weight_that_one_rank_has_not_used_moves_on_all(found):
    assert_same([rank["unused"] for rank in found])
    assert [int(found[0]["unused"][f"{i}.weight_count"]) for i in (1, 3)] == [2, 1]


def test_all_ranks_refuse_a_gradient_that_is_not_finite_on_one(found):
    for rank in found:
        message, unchanged = rank["broken"]
        assert "finite gradient of the unitary weight '1.weight'" in message
        assert unchanged


def test_what_is_refused_says_why(found):
    messages = found[0]["refused"]
    assert len(messages) == 4
    assert "expected share_gradients(model) in a distributed run" in messages[0]
    assert "before DistributedDataParallel(model), got a wrapped module" in messages[1]
    assert "expected a module with unitary weights, got a Linear" in messages[2]
    assert "steps before DistributedDataParallel has summed" in messages[3]


def test_without_a_process_group_it_says_so():
    with pytest.raises(RuntimeError, match=r"torch.distributed to be initialised \(init_process_group\)"):
        share_gradients(model())


def test_a_copy_shares_nothing(tmp_path: Path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = model("factored")
        assert share_gradients(net) == ["1.weight", "3.weight"]
        assert all(weight.group is not None for weight in unitary_weights(net))
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert all(weight.group is None for weight in unitary_weights(other))
        loss_of(net, batch(0)).backward()
        projunn_step(net)
        assert_unitary(net)
        assert not isinstance(next(iter(unitary_weights(net))).gradient, DenseGradient)
    finally:
        torch.distributed.destroy_process_group()
