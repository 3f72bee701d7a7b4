"""accelerate: ``attach`` before or after ``prepare``, accumulation, clipping, and checkpoints."""

from pathlib import Path

import pytest
from toys import CLIP, Net, assert_same, by_hand, host, imported, loader, loss_of, quiet, schedule

from unitary_layers import attach

Accelerator = imported("accelerate").Accelerator
pytestmark = quiet


def trained(
    epochs: int = 1,
    order: str = "before",
    gradient: str = "dense",
    accumulate: int = 1,
    clip: float | None = None,
    save: Path | None = None,
    load: Path | None = None,
) -> Net:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = Net(gradient)
    optimizer = host(model)
    if order == "before":
        attach(model, optimizer)
    model, optimizer, batches, scheduler = accelerator.prepare(model, optimizer, loader(), schedule(optimizer))
    if order == "after":
        attach(model, optimizer)
    if load is not None:
        accelerator.load_state(str(load))
    for _ in range(epochs):
        for batch in batches:
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model, batch))
                if clip is not None and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    if save is not None:
        accelerator.save_state(str(save))
    return accelerator.unwrap_model(model)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("gradient", ["dense", "factored"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_prepared_loop_is_the_loop_by_hand(order, gradient, accumulate):
    model = trained(2, order, gradient, accumulate, CLIP)
    assert_same(model, by_hand(2, gradient, accumulate, CLIP))


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_run_goes_on_where_it_was_saved(order, tmp_path: Path):
    trained(order=order, save=tmp_path)
    assert_same(trained(order=order, load=tmp_path), by_hand(2))
