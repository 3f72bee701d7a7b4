"""Certified radii are proofs: no attack within one changes a prediction, and of a linear model they are exact."""

import csv
import math
from pathlib import Path

import certified
import pytest
import torch
from certified import MarginLoss, certified_radii, pgd_attack, pool_lipschitz
from torch import nn

EPS = torch.finfo(torch.float64).eps


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_radius_of_a_linear_model_is_the_distance_to_the_nearest_boundary():
    weight = torch.randn(4, 6, generator=generator(), dtype=torch.float64)
    x = torch.randn(9, 6, generator=generator(), dtype=torch.float64)
    logits = x @ weight.mT
    targets = logits.argmax(dim=1)
    targets[0] = logits[0].argmin()
    radii = certified_radii(logits, targets, weight, 1.0)
    assert radii[0] == 0, "a wrong prediction has no radius"
    for i in range(1, 9):
        y = targets[i]
        distances = {j: (logits[i, y] - logits[i, j]) / (weight[y] - weight[j]).norm() for j in range(4) if j != y}
        nearest = min(distances, key=distances.get)
        assert radii[i].item() == pytest.approx(distances[nearest].item(), rel=100 * EPS)
        normal = (weight[nearest] - weight[y]) / (weight[y] - weight[nearest]).norm()
        for stretch, right in ((0.999, True), (1.001, False)):
            assert ((weight @ (x[i] + stretch * radii[i] * normal)).argmax() == y) == right


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (7, 7)])
def test_constant_of_average_pooling_is_its_operator_norm(height, width):
    operator = torch.full((1, height * width), 1 / (height * width), dtype=torch.float64)
    norm = torch.linalg.matrix_norm(operator, 2).item()
    assert pool_lipschitz("avg", height, width) == pytest.approx(norm, rel=10 * height * width * EPS)
    assert pool_lipschitz("max", height, width) == 1
    with pytest.raises(ValueError, match=r"expected pool to be one of .* got 'avgmax'"):
        pool_lipschitz("avgmax", height, width)


def test_no_attack_within_the_radius_changes_a_prediction():
    torch.manual_seed(0)
    model = certified.make_model("certified", num_classes=3, in_chans=1).double().eval()
    assert model.lipschitz == 1
    inputs = torch.rand(16, 1, 8, 8, generator=generator(), dtype=torch.float64)
    with torch.no_grad():
        logits = model(inputs)
    targets = logits.argmax(dim=1)
    radii = certified_radii(logits, targets, model.get_classifier().weight.detach(), model.lipschitz)
    assert (radii > 0).all()
    for i, radius in enumerate(radii.tolist()):
        images = pgd_attack(model, inputs[i : i + 1], targets[i : i + 1], 0.999 * radius, 10, generator())
        assert model(images).argmax(dim=1) == targets[i]


@pytest.mark.parametrize("radius", [0.05, 0.5, 5.0])
def test_an_attack_stays_in_its_ball_and_among_images(radius):
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3, dtype=torch.float64))
    inputs = torch.rand(20, 1, 3, 3, generator=generator(), dtype=torch.float64)
    targets = model(inputs).argmax(dim=1)
    images = pgd_attack(model, inputs, targets, radius, 10, generator())
    assert ((images - inputs).flatten(1).norm(dim=1) <= radius * (1 + 100 * EPS)).all()
    assert images.min() >= 0
    assert images.max() <= 1
    loss = nn.CrossEntropyLoss()
    assert loss(model(images), targets) > loss(model(inputs), targets)


def test_margin_loss_does_not_see_the_size_of_the_head():
    head = nn.Linear(5, 3, bias=False, dtype=torch.float64)
    x, targets = torch.randn(4, 5, generator=generator(), dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    loss = MarginLoss(head, 10.0)
    before = loss(head(x), targets).item()
    with torch.no_grad():
        head.weight *= 7
    assert loss(head(x), targets).item() == pytest.approx(before, rel=100 * EPS)


def test_script_writes_a_table_in_which_proofs_are_below_attacks(tmp_path: Path):
    options = ["--epochs", "1", "--batch-size", "256", "--attacked", "360", "--attack-steps", "3", "--device", "cpu"]
    certified.main(["--quick", *options, "--threads", "1", "--out", str(tmp_path)])
    with (tmp_path / "certified.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["certified"] * 3 + ["unconstrained"] * 3
    assert [math.isclose(float(row["radius"]), r) for row, r in zip(rows, certified.RADII * 2, strict=True)] == [
        True
    ] * 6
    for row in rows:
        assert float(row["certified"]) <= float(row["attacked"]) <= float(row["clean"])
    assert {float(row["certified"]) for row in rows[3:]} == {0.0}
    assert (tmp_path / "certified.png").stat().st_size > 0


def test_bad_options_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match="--attacked must be at least 1, got 0"):
        certified.main(["--attacked", "0", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="--mixup does not fit"):
        certified.main(["--mixup", "0.2", "--out", str(tmp_path)])


def test_networks_see_pixels_that_are_not_standardised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []

    def first_batches(args, kind, loaders):
        seen.extend(next(iter(loader))[0] for loader in loaders[:2])
        raise InterruptedError

    monkeypatch.setattr(certified, "train", first_batches)
    with pytest.raises(InterruptedError):
        certified.main(["--quick", "--device", "cpu", "--threads", "1", "--out", str(tmp_path)])
    assert len(seen) == 2
    for images in seen:
        assert images.min() == 0
        assert images.max() == 1
