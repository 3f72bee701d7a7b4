"""The examples of the zoo: data, tiny runs that go on where they stopped, and their pictures."""

from pathlib import Path

import fine_tuning
import flood_fill
import graphs
import group_distance
import irregular_series
import pytest
import torch
from common.series import read_series, thinned
from common.table import matching, mean_of, read_table, write_table

from unitary_layers.linalg import dihedral_moves
from unitary_layers.training import unitary_weights

PNG = b"\x89PNG\r\n\x1a\n"
HEADER = "@problemName Some\n@classLabel true walk run\n@data\n"


def test_series_have_the_labels_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "some.ts"
    path.write_text(HEADER + "1,2,3:4,5,6:run\n7:8:walk\n")
    series, labels = read_series(path)
    assert [x.tolist() for x in series] == [[[1, 4], [2, 5], [3, 6]], [[7, 8]]]
    assert labels.tolist() == [1, 0]


def test_steps_are_dropped_in_order_and_the_times_tell_which() -> None:
    series = torch.arange(10.0).unsqueeze(1)
    kept = thinned(series, 0.7, torch.Generator().manual_seed(0))
    assert kept.shape == (3, 2)
    torch.testing.assert_close(kept[:, 0] * 9, kept[:, 1])
    assert (kept[:, 1].diff() > 0).all()
    assert len(thinned(series[:2], 0.9, torch.Generator())) == 2


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [{"kind": "a", "score": "1"}, {"kind": "b", "score": "2"}, {"kind": "b", "score": "4"}]
    assert read_table(tmp_path / "table.csv") == []
    write_table(tmp_path / "table.csv", rows)
    assert read_table(tmp_path / "table.csv") == rows
    assert mean_of(matching(rows, {"kind": "b"}), "score") == 3
    assert mean_of([], "score") != mean_of([], "score")


def test_irregular_series_go_on_where_they_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "Some").mkdir()
    generator, lines = torch.Generator().manual_seed(0), []
    for label in ("walk", "run") * 4:
        rows = torch.randn(2, 5, generator=generator).tolist()
        lines.append(":".join([*(",".join(map(str, row)) for row in rows), label]))
    for part in ("TRAIN", "TEST"):
        (tmp_path / f"Some/Some_{part}.ts").write_text(HEADER + "\n".join(lines) + "\n")
    options = ["--series", "Some", "--quick", "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    irregular_series.main(options)
    rows = read_table(tmp_path / "out/irregular_series.csv")
    networks = [network for network in irregular_series.NETWORKS for _ in irregular_series.SHARES]
    assert [row["network"] for row in rows] == networks
    assert all(bool(row["error"]) == ("development" in row["network"]) for row in rows)
    irregular_series.main(options)
    assert read_table(tmp_path / "out/irregular_series.csv") == rows
    assert (tmp_path / "out/irregular_series.png").read_bytes().startswith(PNG)
    assert "| Some | lstm + development |" in capsys.readouterr().out


def test_series_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Some_TRAIN.ts is not there. It is in the wheel of the package aeon"):
        irregular_series.load(tmp_path, "Some")


def test_a_region_is_what_a_walker_reaches() -> None:
    x, region = flood_fill.drawings(5, 8, torch.Generator().manual_seed(0))
    for walls, mark, found in zip(x[:, 0], x[:, 1], region[:, 0], strict=True):
        assert walls[0].all()
        assert walls[:, 0].all()
        assert mark.sum() == 1
        ahead, seen = [tuple(mark.nonzero()[0].tolist())], set()
        while ahead:
            i, j = ahead.pop()
            if not walls[i, j] and (i, j) not in seen:
                seen.add((i, j))
                ahead += [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
        assert {tuple(place) for place in found.nonzero().tolist()} == seen


def test_cells_fill_and_go_on_where_they_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quick", "--steps", "4", "--out", str(tmp_path)]
    flood_fill.main(options)
    rows = read_table(tmp_path / "flood_fill.csv")
    tests = [(kind, side, steps) for kind in flood_fill.RATES for side in (10, 20) for steps in (2, 4, 8)]
    assert [(row["cell"], int(row["side"]), int(row["steps"]) * 10 // int(row["side"])) for row in rows] == tests
    assert len({row["parameters"] for row in rows}) <= 2
    flood_fill.main(options)
    assert read_table(tmp_path / "flood_fill.csv") == rows
    assert (tmp_path / "flood_fill.png").read_bytes().startswith(PNG)
    assert "orthogonal, 20 x 20: 4 steps" in capsys.readouterr().out


def test_graph_networks_go_on_where_they_stopped(tmp_path: Path) -> None:
    options = ["--quick", "--depths", "2", "--networks", "unitary", "gcn, residual", "--out", str(tmp_path)]
    graphs.main([*options, "--log-every", "2"])
    rows = read_table(tmp_path / "graphs.csv")
    assert [(row["network"], bool(row["error"])) for row in rows] == [("unitary", True), ("gcn, residual", False)]
    assert (tmp_path / "graphs.png").read_bytes().startswith(PNG)
    with pytest.raises(RuntimeError, match="holds a run"):
        graphs.main(options)
    graphs.main([*options, "--resume", "--log-every", "2"])
    assert read_table(tmp_path / "graphs.csv") == rows
    with pytest.raises(FileNotFoundError, match=r"minesweeper.npz is not there. It is in https"):
        graphs.load(tmp_path, 0)


def test_a_cell_has_eight_neighbours_and_fewer_at_the_edges() -> None:
    counts = torch.bincount(graphs.cells_beside(4)[0]).view(4, 4)
    assert counts[0].tolist() == [3, 5, 5, 3]
    assert counts[1].tolist() == [5, 8, 8, 5]


@pytest.mark.parametrize("corners", [1, 2, 5, 8])
def test_the_distance_of_two_symmetries_is_the_number_of_moves_between_them(corners: int) -> None:
    x, distance = group_distance.draw_pairs(50, corners, torch.Generator().manual_seed(0))
    moves = dihedral_moves(corners)
    for signal, expected in zip(x[:, 0], distance.tolist(), strict=True):
        assert signal.square().mean() == pytest.approx(1)
        start, end = signal.nonzero()[:, 0].tolist()
        reached, steps = {start}, 0
        while end not in reached:
            reached |= {int(move[g]) for g in reached for move in moves}
            steps += 1
        assert steps == expected


def test_networks_on_a_group_go_on_where_they_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quick", "--depths", "2", "--steps", "2", "--out", str(tmp_path)]
    group_distance.main(options)
    rows = read_table(tmp_path / "group_distance.csv")
    assert [(row["network"], bool(row["drift"])) for row in rows] == [
        (network, network == "unitary") for network in group_distance.NETWORKS
    ]
    capsys.readouterr()
    group_distance.main(options)
    assert capsys.readouterr().out == ""
    assert read_table(tmp_path / "group_distance.csv") == rows
    assert (tmp_path / "group_distance.png").read_bytes().startswith(PNG)


def test_weights_are_tuned_in_every_way_and_runs_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quick", "--used", "20", "--tested", "20", "--lengths", "0.03", "--out", str(tmp_path)]
    fine_tuning.main(options)
    rows = read_table(tmp_path / "fine_tuning.csv")
    assert [(row["way"], row["length"]) for row in rows] == [("head", ""), ("attached", "0.03"), ("reverted", "")]
    capsys.readouterr()
    fine_tuning.main(options)
    assert capsys.readouterr().out == ""
    assert (tmp_path / "fine_tuning.png").read_bytes().startswith(PNG)


def test_what_is_tuned_is_what_the_way_says() -> None:
    args = fine_tuning.parser().parse_args(["--model", "unissm_pixel_projunn.mnist"])
    model, optimizer = fine_tuning.prepared(args, "head", 1e-3, 0.0)
    assert {p for p in model.parameters() if p.requires_grad} == set(model.get_classifier().parameters())
    assert {p for group in optimizer.param_groups for p in group["params"]} == set(model.get_classifier().parameters())
    model, optimizer = fine_tuning.prepared(args, "attached", 1e-3, 0.1)
    (weight, *_), before = list(unitary_weights(model)), next(unitary_weights(model)).matrix.clone()
    model(torch.randn(2, 1, 28, 28)).square().sum().backward()
    optimizer.step()
    length = float((weight.matrix - before).norm())
    assert length == pytest.approx(0.1 * weight.rule.rate, rel=0.02)
