"""Ranks hold bit-identical weights, those of one process on the joint batch, and move O(k n) numbers."""

import copy
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.multiprocessing as mp
from ranks import RUNS, STEPS, N, Run, State, batch, loss_of, model

from unitary_layers import UnitaryLinear, attach, projunn_step, share_gradients
from unitary_layers.projunn import DenseGradient
from unitary_layers.projunn.gradient import FactoredGradient
from unitary_layers.testing import assert_unitary
from unitary_layers.training import drop_gradients, unitary_weights
from unitary_layers.training.memory import SAMPLED


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw in each scenario."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.set_forkserver_preload(["unitary_layers"])  # imported once for all of them
    mp.start_processes(ranks.work, (request.param, folder), nprocs=request.param, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


def assert_same(states: list[State]) -> None:
    for state in states[1:]:
        assert all(torch.equal(state[name], value) for name, value in states[0].items())


def without_momenta(state: State) -> State:
    """All but what each rank keeps of its own gradients."""
    return {name: value for name, value in state.items() if not name.endswith(("_momentum", "_slope"))}


def assert_close(state: State, other: State) -> None:
    for name, value in other.items():
        tolerance = 1e4 * N * STEPS * torch.finfo(torch.float64).eps * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(state[name], value, rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("name", RUNS)
def test_ranks_agree_bit_for_bit_and_with_one_process(found, name):
    states = [without_momenta(rank["trained"][name][0]) for rank in found]
    assert_same(states)
    assert_close(states[0], without_momenta(RUNS[name].alone()))
    net = model()
    net.load_state_dict({key: v for key, v in states[0].items() if key in net.state_dict()})
    assert_unitary(net)


@pytest.mark.parametrize("entry", ranks.ENTRIES, ids=lambda e: e.name)
def test_every_layer_trains_together(found, entry):
    together = [rank["every_layer"][entry.name][0] for rank in found]
    assert_same(together)
    assert_close(together[0], found[0]["every_layer"][entry.name][1])


def test_thin_products_cross_the_wire(found):
    k, weights, number = 1, 2, 8
    ordinary = (6 + 1) * N + N + N + (N + 1) * 3
    flags = 3  # whether a weight has a gradient, and how many steps it has taken, both ways
    for rank in found:
        moved = {name: bytes_ / RUNS[name].steps / number for name, (_, bytes_) in rank["trained"].items()}
        assert rank["dense_bytes"] / number == weights * N * N + ordinary
        assert moved["hook"] == weights * 2 * k * N + ordinary
        assert moved["hook-power"] == weights * 2 * 2 * N + ordinary
        assert moved["hook-column"] == rank["dense_bytes"] / number
        for name in ("share", "share-plain", "share-factored", "share-attach", "share-attach-factored"):
            assert moved[name] == weights * (2 * k * N + flags)
        assert moved["share-factored-power"] == weights * (2 * 2 * N + flags)
        assert moved["share-svd"] > weights * N * N
        assert moved["share-spectral"] == weights * (4 * 2 * N + flags)  # the tangent part asks for two products more
        for name in ("share-spectral-factored", "share-spectral-factored-attach", "share-spectral-factored-buffer"):
            assert moved[name] == weights * (2 * SAMPLED * 2 * N + flags)
        for name in ("share-spectral-attach", "share-spectral-buffer", "share-spectral-optimiser"):
            assert moved[name] == weights * (4 * 2 * N + 1 + flags)  # and the slope test for a number
        assert moved["hook-spectral"] == rank["dense_bytes"] / number


def test_accumulation_without_synchronisation(found):
    """With a rank of the rows of all micro-batches, none of which is lost where one process samples each."""
    world = len(found)
    for name in found[0]["accumulated"]:
        assert_same([rank["accumulated"][name] for rank in found])
        net = model(rank=8)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        attach(net, optimizer)
        for step in range(5):
            for rank in range(world):
                x = batch(step)[rank::world]
                ((loss_of(net, x[:1]) + loss_of(net, x[1:])) / world).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert_close(found[0]["accumulated"][name], net.state_dict())


def test_ranks_with_few_rows_or_none_keep_up(found):
    for gradient in ("dense", "factored"):
        assert_same([rank["uneven"][gradient] for rank in found])
        assert_close(found[0]["uneven"][gradient], Run("alone", gradient, "attach", 5).alone())


def test_a_rank_that_has_run_out_of_batches_joins(found):
    assert_same([rank["joined"] for rank in found])
    net, world = model(), len(found)
    ordinary = torch.optim.SGD([p for name, p in net.named_parameters() if name[0] in "04"], lr=0.1)
    for step in range(5):
        for rank in range(world - (step >= 3)):
            (loss_of(net, batch(step)[rank::world]) / world).backward()
        projunn_step(net)
        ordinary.step()
        ordinary.zero_grad()
    assert_close(found[0]["joined"], net.state_dict())


def test_a_weight_that_one_rank_has_not_used_moves_on_all(found):
    net, world = model(rank=N), len(found)
    for step in range(3):
        for rank in range(world):
            ranks.backward_leaving_out(net, step, rank, slice(rank, None, world), 1 / world)
        projunn_step(net)
    for gradient in ("dense", "factored"):
        assert_same([rank["unused"][gradient] for rank in found])
        assert_close(found[0]["unused"][gradient], net.state_dict())
    assert [int(net[i].weight_count) for i in (1, 3)] == [3, 2]
    assert_same([rank["unused_under_ddp"] for rank in found])


def test_all_ranks_refuse_a_gradient_that_is_not_finite_on_one(found):
    for rank in found:
        for nonfinite, message, unchanged in rank["broken"]:
            assert unchanged
            assert ("expected a finite gradient of the unitary weight" in message) == (nonfinite == "raise")
            assert (message == "no error") == (nonfinite == "skip")


def test_all_ranks_skip_a_step_of_a_scaler_that_shares_its_infinities(found):
    assert_same([rank["scaled"] for rank in found])
    net = model()
    loss_of(net, batch(1)).backward()
    projunn_step(net)
    assert_close(found[0]["scaled"], {weight.name: weight.matrix for weight in unitary_weights(net)})


def test_the_hook_leaves_the_same_norm_on_all_ranks(found):
    norms = [rank["clipped"] for rank in found]
    assert all(torch.equal(norm, norms[0]) for norm in norms)


def test_ordinary_parameters_may_be_sharded(found):
    for gradient in ("dense", "factored"):
        assert_same([rank["sharded"][gradient] for rank in found])
        assert_close(found[0]["sharded"][gradient], Run("alone", gradient, "attach", 5).alone())


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        ("alone", "expected share_gradients(model) in a distributed run"),
        ("wrapped", "before DistributedDataParallel(model), got a wrapped module"),
        ("nothing", "expected a module with unitary weights, got a Linear"),
        ("backward", "steps before DistributedDataParallel has summed"),
        ("ahead", "the unitary weight '1.weight' after as many steps on each rank, got 0 to 1"),
        ("share_sharded", "the unitary weight '1.weight' to be a parameter and whole on each rank, got a DTensor"),
        ("sharded", "the unitary weight '1.weight' to be a parameter and whole on each rank, got a DTensor"),
        ("flat", "'_fsdp_wrapped_module.1.weight' to be a parameter and whole on each rank, got a Parameter"),
        ("hidden", "'_fsdp_wrapped_module.1.weight' to be a parameter and whole on each rank, got a Tensor"),
    ],
)
def test_what_is_refused_says_why(found, attempt, message):
    assert all(message in rank["refused"][attempt] for rank in found)


def test_without_a_process_group_it_says_so():
    with pytest.raises(RuntimeError, match=r"torch.distributed to be initialised \(init_process_group\)"):
        share_gradients(model())


@pytest.fixture
def one_rank(tmp_path: Path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_a_copy_shares_nothing():
    net = model("factored")
    assert share_gradients(net) == ["1.weight", "3.weight"]
    assert all(weight.group is not None for weight in unitary_weights(net))
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert all(weight.group is None for weight in unitary_weights(other))
    loss_of(net, batch(0)).backward()
    projunn_step(net)
    assert_unitary(net)


@pytest.mark.usefixtures("one_rank")
def test_a_shared_gradient_keeps_the_smaller_of_its_forms_until_the_step():
    layer = UnitaryLinear(N, N, bias=False, gradient="factored", dtype=torch.float64)
    share_gradients(layer)
    twin = copy.deepcopy(layer)  # shares nothing: it would sample
    twin.gradient = "dense"
    x = torch.randn(3, N, dtype=torch.float64)
    kinds = []
    for _ in range(3):
        for each in (layer, twin):
            (each(x) - 1).square().sum().backward()
        x.normal_()  # the buffer belongs to the caller
        kinds.append(type(layer.unitary_weight("weight").gradient))
    assert kinds == [FactoredGradient, kinds[1], DenseGradient]
    dense = layer.unitary_weight("weight").gradient.dense()
    torch.testing.assert_close(dense, twin.weight.grad)
    layer.to(torch.float32)
    assert layer.unitary_weight("weight").gradient.dense().dtype == torch.float32
    drop_gradients(layer)
    assert layer.unitary_weight("weight").gradient is None


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("tree", ["root", "tied"])
def test_ddp_does_not_see_shared_weights(tree):
    layer = UnitaryLinear(N, N)
    module = layer
    if tree == "tied":
        module = torch.nn.Sequential(layer, UnitaryLinear(N, N))
        module[1].weight = layer.weight
    share_gradients(module)
    wrapped, seen = torch.nn.parallel.DistributedDataParallel(module), []

    def hook(state, bucket):
        seen.extend(bucket.parameters())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    wrapped.register_comm_hook(None, hook)
    wrapped(torch.randn(2, N)).sum().backward()
    assert {id(p) for p in seen} == {id(p) for name, p in module.named_parameters() if name.endswith("bias")}
    assert not any(name.endswith("weight_count") for name in wrapped.named_module_buffers)
