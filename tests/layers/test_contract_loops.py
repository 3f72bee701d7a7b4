"""What every layer promises in the loops of torch: accumulation, clipping, GradScaler, freezing, tying, devices."""

import copy

import pytest
import torch
from closeness import assert_rounding
from entries import ENTRIES, Entry, N, every_entry, gradient_of, loss_of, matrices, output_of, same_tensors, step
from torch import Tensor, nn

from unitary_layers import ProjUNN, UpdateRule, attach, projunn_step
from unitary_layers.testing import assert_unitary
from unitary_layers.training import unitary_weights

EXACT = UpdateRule(
    rank=N, lr=0.1, direction="gradient"
)  # at full rank a sample is the gradient, and sums of samples are sums of gradients
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SCALE = 1024.0
every_dense_entry = pytest.mark.parametrize("entry", [e for e in ENTRIES if not e.factored], ids=lambda e: e.name)
every_factored_entry = pytest.mark.parametrize("entry", [e for e in ENTRIES if e.factored], ids=lambda e: e.name)


def assert_same_matrices(a: nn.Module, b: nn.Module) -> None:
    for mine, theirs in zip(matrices(a).values(), matrices(b).values(), strict=True):
        assert_rounding(mine, theirs, n=100 * N)


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=SCALE)


@every_entry
def test_accumulated_gradients_make_one_step_of_their_sum(entry):
    module = entry.make(update=EXACT)
    twin, parts = copy.deepcopy(module), [entry.input(seed=seed) for seed in (5, 6)]
    for x in parts:
        loss_of(module, x).backward()
    sum(loss_of(twin, x) for x in parts).backward()
    for m in (module, twin):
        projunn_step(m)
        assert all(weight.count == 1 for weight in unitary_weights(m))
    assert_same_matrices(module, twin)


@every_dense_entry
def test_a_step_of_clipped_gradients_is_shorter_by_as_much(entry):
    module = entry.make(update=UpdateRule(lr=0.3, direction="gradient"))
    twin, x = copy.deepcopy(module), entry.input()
    for m in (module, twin):
        loss_of(m, x).backward()
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 0.01)
    projunn_step(module)
    projunn_step(twin, lr_scale=float(0.01 / norm))
    assert_same_matrices(module, twin)


def train(module: nn.Module, entry: Entry, scaler: torch.amp.GradScaler | None, clip: bool) -> None:
    """Two steps of a loop with everything: the one with a scaler, as torch's documentation has it, or without."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)
    attach(module, optimizer, scaler=scaler)
    for seed in (5, 6):
        optimizer.zero_grad()
        loss = loss_of(module, entry.input(seed=seed))
        (loss if scaler is None else scaler.scale(loss)).backward()
        if clip:
            if scaler is not None:
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(module.parameters(), 0.01)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()


@every_entry
@pytest.mark.parametrize("clip", [False, True], ids=["without clipping", "clipping"])
def test_a_scaled_loss_makes_the_same_steps(entry, clip):
    module = entry.make(update=UpdateRule(lr=0.3, direction="gradient"))  # to rounding, whatever the weights
    twin, start = copy.deepcopy(module), matrices(module)
    train(module, entry, scaler(), clip)
    train(twin, entry, None, clip)
    assert_same_matrices(module, twin)
    assert all(weight.count == 2 for weight in unitary_weights(module))
    assert not same_tensors(matrices(module), start)


@every_factored_entry
def test_a_factored_gradient_that_overflowed_skips_the_whole_step_and_lowers_the_scale(entry):
    module, x, scaled = entry.make(), entry.input(), scaler()
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0.1)
    attach(module, optimizer, scaler=scaled)
    before = copy.deepcopy(module.state_dict())
    scaled.scale(loss_of(module, x)).backward()
    *_, last = unitary_weights(module)
    last.collected.low_rank.left.mT.view(-1)[0] = torch.inf
    scaled.step(optimizer)
    scaled.update()
    assert same_tensors(module.state_dict(), before)
    assert scaled.get_scale() == SCALE / 2
    optimizer.zero_grad()
    scaled.scale(loss_of(module, x)).backward()
    scaled.step(optimizer)
    assert all(weight.count == 1 for weight in unitary_weights(module))
    assert_unitary(module)


@every_factored_entry
@pytest.mark.parametrize("set_to_none", [True, False], ids=["to None", "to zeros"])
def test_zero_grad_of_a_plain_container_reaches_factored_gradients(entry, set_to_none):
    module = entry.make()
    net = nn.ModuleDict({"inner": module})
    loss_of(module, entry.input()).backward()
    assert all(weight.parameter.grad.norm() > 0 for weight in unitary_weights(module))
    net.zero_grad(set_to_none)
    for weight in unitary_weights(module):
        assert (weight.parameter.grad is None) == set_to_none
        assert set_to_none or weight.parameter.grad.norm() == 0


@every_entry
def test_a_weight_that_is_unfrozen_goes_on_from_where_it_was(entry):
    module, x = entry.make(), entry.input().requires_grad_()
    step(module, x)
    module.requires_grad_(False)
    before = matrices(module)
    step(module, x)
    assert all(gradient_of(weight) is None for weight in unitary_weights(module))
    assert same_tensors(matrices(module), before)
    module.requires_grad_(True)
    step(module, x)
    assert all(weight.count == 2 for weight in unitary_weights(module))
    assert all(not torch.equal(after, before[name]) for name, after in matrices(module).items())
    assert_unitary(module)


def tied_pair(entry: Entry) -> nn.ModuleList:
    """Two layers with the same parameters."""
    first, second = entry.make(update=EXACT), entry.make(update=EXACT)
    for name, parameter in first.named_parameters():
        *path, last = name.split(".")
        setattr(second.get_submodule(".".join(path)), last, parameter)
    return nn.ModuleList([first, second])


@every_entry
@pytest.mark.parametrize("by", ["projunn_step", "ProjUNN"])
def test_tied_weights_move_once_by_the_sum_of_their_gradients(entry, by):
    pair, inputs = tied_pair(entry), [entry.input(seed=seed) for seed in (5, 6)]
    pair = copy.deepcopy(pair)  # torch keeps ties, and so do we
    twin = copy.deepcopy(pair[0])
    for losses, module in (
        ([loss_of(m, x) for m, x in zip(pair, inputs, strict=True)], pair),
        ([loss_of(twin, x) for x in inputs], twin),
    ):
        optimizer = ProjUNN(module.parameters(), lr=0.1, unitary_lr_scale=1.0, direction="gradient")
        sum(losses).backward()
        projunn_step(module) if by == "projunn_step" else optimizer.step()
    assert_same_matrices(pair, twin)
    assert all(weight.count == 1 for weight in unitary_weights(pair[0]))
    assert all(weight.seen.is_of(weight.parameter) for weight in unitary_weights(pair[1]))  # by whichever it was moved
    assert all(gradient_of(weight) is None for weight in unitary_weights(pair[1]))
    assert_unitary(pair)


@every_entry
@pytest.mark.parametrize("device", DEVICES)
def test_on_every_device(entry, device):
    module = entry.make(device=device)
    assert {t.device.type for t in module.state_dict().values()} == {device}
    for x in (entry.input(), entry.input(seed=6)):
        before = matrices(module)
        assert output_of(module, x.to(device)).device.type == device
        step(module, x.to(device))
        assert all(not torch.equal(after, before[name]) for name, after in matrices(module).items())
    assert_unitary(module)
    moved = copy.deepcopy(module).cpu()
    assert_rounding(output_of(moved, entry.input()), output_of(module, entry.input().to(device)).cpu(), n=N * N)


@every_entry
def test_the_meta_device_knows_the_shapes(entry):
    expected = output_of(entry.make(), entry.input())
    found = output_of(entry.make(device="meta"), entry.input().to("meta"))
    assert found.is_meta
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


@every_entry
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_module_type_casts_neither_counters_nor_unitary_weights_below_float32(entry, dtype):
    module = entry.make(update=UpdateRule(sampler="power", lr=0.3, momentum=0.9))
    step(module, entry.input())
    module.type(dtype)
    least = torch.promote_types(dtype, torch.float32)
    for weight in unitary_weights(module):
        assert weight.count.dtype == torch.int64
        state: list[Tensor] = [weight.parameter, weight.previous, *weight.memory]
        assert {t.dtype for t in state} == {least}
    wide = entry.of(dtype if dtype == torch.float64 else torch.float32)
    x = entry.input().to(wide if entry.is_complex else dtype)
    step(module, x)
    assert all(weight.count == 2 for weight in unitary_weights(module))
    assert_unitary(module, tolerance=10 * N * torch.finfo(torch.float32).eps)
