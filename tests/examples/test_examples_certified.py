"""The certified example: its attack, its networks, and a table in which proofs are below upper bounds."""

import csv
from pathlib import Path

import certified
import pytest
import torch
from certified import pgd_attack
from common.image_memory import MemoryLoader
from common.shift_network import ShiftNetwork
from torch import nn

from unitary_layers.robust import certified_radius
from unitary_layers.training import unitary_weights

EPS = torch.finfo(torch.float64).eps


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def plain() -> nn.Module:
    return certified.make_model("certified", num_classes=3, in_chans=1)


def shifts() -> nn.Module:
    return ShiftNetwork(3, (1, 8, 8), 2, (8, 16), (1, 1), "flat", "haar")


@pytest.mark.parametrize("make", [plain, shifts])
def test_no_attack_within_the_radius_changes_a_prediction(make):
    torch.manual_seed(0)
    model = make().double().eval()
    assert model.lipschitz == 1
    inputs = torch.rand(16, 1, 8, 8, generator=generator(), dtype=torch.float64)
    right, radii = certified.radii_of(model, [(inputs, model(inputs).argmax(dim=1))], "cpu")
    assert right.all()
    assert (radii > 0).all()
    with torch.no_grad():
        logits, head = model(inputs), model.get_classifier()
    targets = logits.argmax(dim=1)
    assert torch.equal(radii, certified_radius(logits, getattr(head, "matrix", head.weight).detach()))
    model.requires_grad_(False)
    for i, radius in enumerate(radii.tolist()):
        images = pgd_attack(model, inputs[i : i + 1], targets[i : i + 1], 0.999 * radius, 10, generator())
        assert model(images).argmax(dim=1) == targets[i]


def test_of_a_network_without_a_constant_nothing_is_certified():
    model = certified.make_model("unconstrained", num_classes=3, in_chans=1).eval()
    inputs = torch.rand(4, 1, 8, 8, generator=generator())
    right, radii = certified.radii_of(model, [(inputs, model(inputs).argmax(dim=1))], "cpu")
    assert right.all()
    assert (radii == 0).all()


@pytest.mark.parametrize("pool", ["flat", "norm"])
def test_the_network_of_shifts_enlarges_no_distance(pool):
    model = ShiftNetwork(3, (1, 8, 8), 2, (4, 16), (1, 1), pool, "haar").double()
    jacobian = torch.autograd.functional.jacobian(lambda x: model.features(x)[0], torch.rand(1, 1, 8, 8).double())
    values = torch.linalg.svdvals(jacobian.flatten(1))
    assert values.max() <= 1 + 1000 * EPS
    if pool == "flat":
        assert values.min() >= 1 - 1000 * EPS, "an isometry: no stage has fewer numbers than the image"


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


def test_images_in_memory_are_moved_and_mirrored_in_training_alone():
    images, targets = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).repeat(200, 1, 1, 1), torch.arange(200)
    still = MemoryLoader(images, targets, 64, train=False)
    assert len(still) == len(list(still)) == 4
    assert torch.equal(torch.cat([x for x, _ in still]), images.float() / 255)
    moving = MemoryLoader(images, targets, 64, train=True, flips=True, shift=1)
    torch.manual_seed(0)
    batches = list(moving)
    assert len(moving) == len(batches) == 3, "the incomplete batch is dropped"
    padded = torch.nn.functional.pad(images[0], [1] * 4)
    places = [padded[:, i : i + 3, j : j + 3] for i in range(3) for j in range(3)]
    expected = {tuple(view.flatten().tolist()) for place in places for view in (place, place.flip(-1))}
    found = [tuple((255 * x).round().int().flatten().tolist()) for batch, _ in batches for x in batch]
    assert set(found) == expected
    torch.manual_seed(0)
    assert all(torch.equal(x, again) for (x, _), (again, _) in zip(batches, moving, strict=True))


RADII = (0.1, 1 / 3)
LAYOUT = ("--patch", "2", "--widths", "8", "16", "--depths", "1", "1")
SHIFTS = ("--radii", "0.1", "1/3", "--network", "shift", *LAYOUT, "--kinds", "certified")


@pytest.mark.parametrize(
    ("network", "kinds", "radii"),
    [((), certified.KINDS, certified.RADII), (SHIFTS, certified.KINDS[:1], RADII)],
    ids=["plain", "shift"],
)
def test_script_writes_a_table_in_which_proofs_are_below_attacks(tmp_path: Path, network, kinds, radii):
    options = ["--epochs", "1", "--batch-size", "256", "--attacked", "360", "--attack-steps", "3", "--device", "cpu"]
    certified.main(["--quick", *options, *network, "--threads", "1", "--out", str(tmp_path)])
    with (tmp_path / "certified.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], float(row["radius"])) for row in rows] == [(k, r) for k in kinds for r in radii]
    for row in rows:
        assert float(row["certified"]) <= min(float(row["attacked"]), float(row["bounded"]))
        assert max(float(row["attacked"]), float(row["bounded"])) <= float(row["clean"])
    assert {float(row["certified"]) for row in rows[3:]} <= {0.0}, "of the unconstrained network nothing is proved"
    assert (tmp_path / "certified.png").stat().st_size > 0


def test_the_rule_of_the_matrices_is_that_of_the_options():
    args = certified.parse(certified.parser(), ["--network", "shift", "--rank", "3"], {}, unitary_lr_scale=0.03)
    matrices = list(unitary_weights(certified.network_of(args, "certified", 10)))
    assert {weight.rule.rank for weight in matrices} == {3}
    args.rank, args.unitary_lr = None, 0.5
    assert {weight.rule.lr for weight in unitary_weights(certified.network_of(args, "certified", 10))} == {0.5}


def test_bad_options_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match="--attacked must be at least 1, got 0"):
        certified.main(["--attacked", "0", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="--radii must be positive"):
        certified.main(["--radii", "0.1", "0", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="--rank needs --network shift and --direction spectral"):
        certified.main(["--rank", "4", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="--mixup does not fit"):
        certified.main(["--mixup", "0.2", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="--scale and --img-size need images that are decoded"):
        certified.main(["--quick", "--network", "shift", "--scale", "0.5", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="at least --batch-size 4000 training images, got 1437"):
        certified.main(["--quick", "--network", "shift", "--batch-size", "4000", "--out", str(tmp_path)])


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
