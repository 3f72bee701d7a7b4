"""torch.distributed.checkpoint: a run goes on exactly from the folder that it has written."""

from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer
from toys import Net, assert_same, host, loader, loss_of, quiet

from unitary_layers import ProjUNN, attach

pytestmark = quiet


def made(how: str, seed: int) -> tuple[Net, Optimizer]:
    model = Net(seed=seed)
    if how == "ProjUNN":
        return model, ProjUNN(model.parameters(), lr=1e-2)
    optimizer = host(model)
    attach(model, optimizer)
    return model, optimizer


def train(model: Net, optimizer: Optimizer) -> None:
    for batch in loader():
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("how", ["attach", "ProjUNN"])
def test_a_run_goes_on_where_it_was_saved(how, tmp_path: Path):
    whole, optimizer = made(how, 0)
    train(whole, optimizer)
    state = dict(zip(("model", "optimizer"), get_state_dict(whole, optimizer), strict=True))
    dcp.save(state, checkpoint_id=tmp_path)
    train(whole, optimizer)
    model, optimizer = made(how, 1)
    state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.load(state, checkpoint_id=tmp_path)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    train(model, optimizer)
    assert_same(model, whole)
