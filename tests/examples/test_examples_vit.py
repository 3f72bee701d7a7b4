"""The example of vision transformers: its table, its twins, and runs that go on where they were stopped."""

from pathlib import Path

import orthovit
import pytest
import torch
from common.table import read_table
from torch import nn

from unitary_layers import unitary_weights

TINY = ["--quick", "--epochs", "1", "--batch-size", "700", "--embed-dim", "8", "--patch-size", "4", "--lr", "1e-3", "1"]


def test_the_table_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(orthovit, "draw", lambda path: None)
    orthovit.main([*TINY, "--out", str(tmp_path / "whole")])
    rows = read_table(tmp_path / "whole" / "orthovit.csv")
    assert [(row["network"], row["rate"]) for row in rows] == [
        (network, rate) for rate in ("0.001", "1.0") for network in orthovit.DEFAULT
    ]
    step, count = torch.optim.AdamW.step, []

    def stopping(self: torch.optim.AdamW, *rest: object) -> object:
        count.append(1)
        if len(count) == 6:
            raise KeyboardInterrupt
        return step(self, *rest)

    line = [*TINY, "--out", str(tmp_path / "parts"), "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            orthovit.main(line)
    assert len(read_table(tmp_path / "parts" / "orthovit.csv")) == 2
    orthovit.main(line)
    again = read_table(tmp_path / "parts" / "orthovit.csv")
    assert [row | {"seconds": ""} for row in again] == [row | {"seconds": ""} for row in rows]


COUNTS = {"orthogonal": 8, "orthogonal attention": 4, "unconstrained": 0, "orthogonal start": 0}


@pytest.mark.parametrize(("network", "count"), COUNTS.items())
def test_networks_differ_in_their_layers_alone(network: str, count: int, tmp_path: Path):
    args = orthovit.parser().parse_args(["--images", "digits", "--depths", "1", "1", "--out", str(tmp_path)])
    data = orthovit.Pixels(orthovit.load_images("digits", ""), 100)
    given = next(args for args in orthovit.runs_of(args))
    given.network = network
    model = orthovit.Run(given, data).model
    assert len(list(unitary_weights(model))) == count
    shapes = [tuple(p.shape) for p in model.parameters()]
    given.network, given.overwrite = "orthogonal", True
    assert shapes == [tuple(p.shape) for p in orthovit.Run(given, data).model.parameters()]
    assert any(isinstance(m, nn.MultiheadAttention) for m in model.modules()) is (count == 0)
    if network == "orthogonal start":
        linear = model.stages[0].blocks[0].mlp[0].weight.detach()
        assert torch.allclose(linear.mT @ linear, torch.eye(linear.shape[1]), atol=1e-5)


def test_a_loss_that_is_no_number_ends_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda outputs, labels: outputs.sum() * torch.nan)
    monkeypatch.setattr(orthovit, "draw", lambda path: None)
    orthovit.main([*TINY, "--networks", "unconstrained", "--out", str(tmp_path)])
    rows = read_table(tmp_path / "orthovit.csv")
    assert [(row["loss"], row["steps"]) for row in rows] == [("nan", "0")] * 2


def test_the_picture_is_drawn_of_the_table(tmp_path: Path):
    table = tmp_path / "orthovit.csv"
    rows = [f"{network},{rate},{seed},0.5,{rate}" for network in ("a", "b") for rate in (1, 2) for seed in (0, 1)]
    table.write_text("\n".join(["network,rate,seed,test_accuracy,loss", *rows, "b,4,0,0.1,nan"]) + "\n")
    orthovit.main(["--draw", str(table)])
    assert table.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
