"""The bench of learning runs, goes on where it stopped, and tells what the default rule keeps and misses."""

import csv
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "benchmarks"))

import learning
import wide
from learning_tasks import METRICS, TASKS, images, seconds, sequences, verdicts
from learning_tasks.contenders import CONTENDERS, GATED, STARTS, available
from learning_tasks.optimizers import Muon
from learning_tasks.results import Row, Table, standings
from learning_tasks.verdicts import report

from unitary_layers import unitary_weights
from unitary_layers.linalg import haar_unitary
from unitary_layers.testing import assert_unitary

CHOSEN = ("frozen", "parametrizations", "muon", "ours")


@pytest.fixture
def quick(tmp_path: Path) -> list[str]:
    return ["--quick", "--tasks", "deep", "pixels", "--contenders", *CHOSEN, "--out", str(tmp_path)]


def test_contenders_compete_and_go_on_where_they_stopped(quick, tmp_path, capsys, monkeypatch):
    rows = learning.main(quick)
    assert [(row.task, row.contender) for row in rows] == [(t, c) for t in ("deep", "pixels") for c in CHOSEN]
    assert all(math.isfinite(row.loss) and row.seconds > 0 and row.error < 1e-3 for row in rows)
    assert all(0 <= row.metric <= 100 for row in rows)
    printed = capsys.readouterr().out
    assert "| task | seeds | frozen | parametrizations | muon | ours |" in printed
    assert "| pixels (test accuracy, %) | 1 |" in printed
    assert (tmp_path / "learning.md").read_text() in printed
    assert (tmp_path / "learning.png").stat().st_size > 0
    path = tmp_path / "learning.csv"
    with path.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)

    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3] + lines[4:]))  # without the third run
    trained, train = [], learning.train
    monkeypatch.setattr(learning, "train", lambda *run: trained.append(run[2]) or train(*run))
    assert len(learning.main(quick)) == len(rows)
    assert trained == [rows[2].contender]
    assert len(learning.main([*quick[:5], "frozen", *quick[-2:], "--again"])) == len(rows)
    assert trained == [rows[2].contender, "frozen", "frozen"]


def test_all_contenders_start_alike():
    losses = {}
    for name in ("deep", "pixels"):
        task = TASKS[name](Path("data"), steps=1)
        runs = [
            learning.train(name, task, contender, 1e-3, 0)
            for contender in available()
            if contender not in (*GATED, *STARTS)
        ]
        losses[name] = {round(run.loss, 4) for run in runs}
    assert {name: len(found) for name, found in losses.items()} == {"deep": 1, "pixels": 1}


def test_factored_gradients_and_other_starts_compete():
    task = TASKS["pixels"](Path("data"), steps=1)
    layers = {name: CONTENDERS[name].make(task, 1.0).model.layer for name in ("factored", *STARTS)}
    assert layers["factored"].gradient == "factored"
    assert torch.equal(layers["identity"].weight_hh_l0, torch.eye(64))
    assert len({round(layer.weight_hh_l0.trace().item(), 3) for layer in layers.values()}) == 4
    assert learning.train("pixels", task, "factored", 1.0, 0).error < 1e-3


def test_kernels_compete_by_their_matrices(monkeypatch):
    """Those without a constraint as torch's own layers."""
    x, y = torch.randn(40, 3, 8, 8), torch.arange(40) % 10
    monkeypatch.setattr(images, "cifar", lambda _root: ((x, y), (x, y)))
    task = TASKS["kernels"](Path("data"), steps=1)
    runs = [learning.train("kernels", task, name, 1e-3, 0) for name in ("frozen", "parametrizations", "ours")]
    assert len({round(run.loss, 4) for run in runs}) == 1
    assert all(run.error < 1e-4 and 0 <= run.metric <= 100 for run in runs)
    learner = CONTENDERS["nesterov"].make(task, 0.1)
    assert learner.optimizers[0].defaults["nesterov"]
    assert not any(True for _ in unitary_weights(learner.model))


def test_gated_recurrences_take_the_place_of_unitary_ones(tmp_path, capsys):
    options = ["--quick", "--tasks", "pixels", "deep", "--contenders", "lstm", "gru", "ours", "--out", str(tmp_path)]
    rows = learning.main(options)
    assert [(row.task, row.contender) for row in rows] == [
        *(("pixels", name) for name in ("lstm", "gru", "ours")),
        ("deep", "ours"),
    ]
    learner = CONTENDERS["lstm"].make(TASKS["pixels"](Path("data")), 1e-3)
    assert isinstance(learner.model.layer, torch.nn.LSTM)
    assert learner.model.layer.hidden_size == 64
    behind = [_row("lstm", 1.0, metric=60.0), _row("gru", 0.9, metric=40.0), _row("ours", 1.1)]
    assert report(behind).endswith("| lstm |")


def test_peers_get_the_seconds_of_the_default_rule(tmp_path, capsys, monkeypatch):
    options = ["--quick", "--tasks", "deep", "--contenders", "parametrizations", "muon", "ours", "--out", str(tmp_path)]
    asked: list[list[str]] = []

    def paces(_task, rates):
        asked.append(list(rates))
        return {"ours": 3.0, "parametrizations": 1.5, "muon": 9.0}

    monkeypatch.setattr(seconds, "paces", paces)
    for module in (learning, verdicts):
        monkeypatch.setattr(module, "PEERS", ("parametrizations", "muon"))
    rows = learning.main([*options, "--equal-seconds"])
    timed = Table(tmp_path / "learning_seconds.csv").rows
    assert [(row.contender, row.steps) for row in timed] == [("parametrizations", 12), ("muon", 2)]
    printed = capsys.readouterr().out
    best = min(row.loss for row in timed)
    ours = rows[-1].loss
    shown = " | ".join(f"{row.loss:.3g} ({row.steps})" for row in (rows[-1], *timed))
    assert f"| deep | 1 | {shown} | {ours / best:.3f} |" in printed
    monkeypatch.setattr(learning, "train", None)
    learning.main([*options, "--equal-seconds"])
    assert asked == [["ours", "parametrizations", "muon"]]


def test_paces_are_those_of_a_step(monkeypatch):
    monkeypatch.setattr(seconds, "ROUNDS", 2)
    monkeypatch.setattr(seconds, "STEPS", 2)
    task = TASKS["deep"](Path("data"), steps=1)
    found = seconds.paces(task, {"frozen": 1.0, "muon": 0.01})
    assert 0 < found["frozen"] < found["muon"] < 1


def test_seconds_to_the_loss_of_a_wide_weight(tmp_path, capsys, monkeypatch):
    ratio = wide.main(["--quick", "--out", str(tmp_path)])
    runs = wide.Runs(tmp_path / "wide.csv")
    lengths = {p.contender: len(runs.of(p.contender, p.rate, p.steps)) for p in runs.points if p.steps > 3}
    assert lengths["parametrizations"] == 12  # at the best of its rates
    assert 2 <= lengths["ours"] <= 24  # until it has the same loss
    assert f"ratio {ratio:.3f}" in capsys.readouterr().out
    assert (tmp_path / "wide.png").stat().st_size > 0
    monkeypatch.setattr(wide, "train", None)
    assert abs(wide.main(["--quick", "--out", str(tmp_path)]) / ratio - 1) < 0.05


def test_a_loss_is_reached_by_the_mean_of_the_last():
    points = [wide.Point("ours", 1.0, 24, i, loss, i / 2) for i, loss in enumerate((3.0, 0.9, 0.9, 0.5))]
    assert wide.reached(points[:3], 0.9, 24)
    assert not wide.reached(points[:2], 0.9, 24)
    assert wide.final(points[:1] * 3) == 3.0


def test_best_rate_of_the_first_seed_runs_with_the_others(tmp_path, monkeypatch):
    table, task = Table(tmp_path / "learning.csv"), TASKS["deep"](Path("data"), steps=10)
    losses = {0.1: 3.0, 0.2: 2.0, 0.4: 1.0, 0.8: math.inf}

    def train(name, _task, contender, rate, seed):
        return replace(_row(contender, losses[round(rate, 6)] + seed, rate=rate), task=name, seed=seed)

    monkeypatch.setattr(learning, "train", train)
    for seeds in ([4], [4, 5, 6]):
        learning.compete("deep", task, "geoopt", seeds, (0.1, 0.2), table)
    wanted = [(0.1, 4), (0.2, 4), (0.4, 4), (0.8, 4), (0.4, 5), (0.4, 6)]
    again = Table(table.path).rows
    assert [(row.rate, row.seed) for row in again] == wanted
    one = standings(again)["deep"]["geoopt"]
    assert (one.rate, one.seeds, one.is_edge, one.loss) == (0.4, 3, False, 6.0)


def test_the_slow_twin_turns_all_planes_by_one_angle():
    torch.manual_seed(0)
    start = haar_unitary(6, dtype=torch.float64)
    weight = torch.nn.Parameter(start.clone())
    weight.grad = torch.randn(6, 6, dtype=torch.float64)
    Muon([weight], lr=0.1).step()
    angles = torch.linalg.eigvals(start.mT @ weight.detach()).angle().abs()
    torch.testing.assert_close(angles, torch.full_like(angles, 0.1))
    assert float(((weight.detach() - start) * weight.grad).sum()) < 0
    for shape in ((3, 6), (6, 3)):
        start = haar_unitary(*shape, dtype=torch.float64)
        weight = torch.nn.Parameter(start.clone())
        weight.grad = torch.randn(shape, dtype=torch.float64)
        Muon([weight], lr=0.1).step()
        assert_unitary(weight)
        assert float(((weight.detach() - start) * weight.grad).sum()) < 0


def _row(contender: str, loss: float, metric: float = 50.0, seconds: float = 1.0, rate: float = 1.0) -> Row:
    return Row("deep", contender, rate, 0, 10, loss, metric, seconds, 0.0)


def test_verdicts():
    rows = [_row("frozen", 2.0), _row("parametrizations", 1.0, rate=0.1), _row("parametrizations", 1.5, rate=0.3)]
    good = [*rows, _row("ours", 1.005, seconds=0.5), _row("ours-third", 1.0), _row("muon", 0.9)]
    assert "| deep | 1.005 | parametrizations | 1.005 | 0.50 | 0.502 | 1.117 | none |" in report(good)
    assert "| deep | 1 | 2 (5) | 1* (2) | 0.9 (1) | 1 (4) | 1 (3) |" in report(good)
    slow = [*rows, _row("ours", 1.005, seconds=1.5)]
    assert report(slow).endswith("| equal seconds |")
    bad = [*rows, _row("ours", 2.5, metric=40.0), _row("ours-third", 1.0)]
    assert report(bad).endswith("| own lengths, equal steps, equal seconds, frozen |")
    near = [_row("ours", 1.2, metric=49.5), _row("ours-third", 1.0)]
    assert report(near).endswith("| none |")
    as_loss = [replace(row, task="adding") for row in near]
    assert report(as_loss).endswith("| own lengths |")


def test_means_are_over_seeds_that_all_have():
    rows = [replace(_row("frozen", 1.0 + seed), seed=seed) for seed in (0, 1, 2)]
    rows += [replace(_row("ours", 0.5 + seed), seed=seed) for seed in (0, 2)]
    found = standings(rows)["deep"]
    assert [(one.loss, one.seeds) for one in found.values()] == [(2.0, 2), (1.5, 2)]


def test_missing_data_is_named_and_left_out(tmp_path, capsys):
    options = ["--quick", "--tasks", "vowels", "minesweeper", "--root", str(tmp_path), "--out", str(tmp_path)]
    assert learning.main(options) == []
    printed = capsys.readouterr().out
    assert "vowels is left out" in printed
    assert "minesweeper.npz is not there" in printed


def test_a_graph_is_learned(tmp_path):
    generator = torch.Generator().manual_seed(0)
    masks = np.arange(20)[None] % 2 == 0
    found = {"node_features": torch.randn(20, 7, generator=generator).numpy(), "node_labels": np.arange(20) % 4 // 2}
    found["edges"] = np.stack([np.arange(19), np.arange(1, 20)], 1)
    np.savez(tmp_path / "minesweeper.npz", **found, train_masks=masks, test_masks=~masks)
    task = TASKS["minesweeper"](tmp_path, steps=40)
    row = learning.train("minesweeper", task, "ours", 1.0, 0)
    assert row.loss < 0.1
    assert 0 <= row.metric <= 100


def test_every_task_has_a_metric():
    assert METRICS.keys() == TASKS.keys()
    for name in ("deep", "pixels", "copying", "adding", "characters"):
        assert TASKS[name](Path("data"), steps=1).metric == METRICS[name]


def test_sequences_of_a_file(tmp_path):
    path = tmp_path / "some.ts"
    path.write_text("@classLabel true 1 2\n@data\n1,2,3:4,5,6:2\n7:8:1\n")
    sequences_, labels = sequences.spoken(path)
    assert [x.tolist() for x in sequences_] == [[[1, 4], [2, 5], [3, 6]], [[7, 8]]]
    assert labels.tolist() == [1, 0]
