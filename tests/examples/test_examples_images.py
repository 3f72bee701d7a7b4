"""The image examples: loaders, a run on timm's parts, resuming bit for bit, and plain networks of several depths."""

import csv
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import depth
import pytest
import timm
import torch
import torch.nn.functional as F
from common.image_data import SETS, make_dataset, make_loader
from common.image_training import ImageRun
from common.log import Row, read_rows
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from timm.utils import ModelEmaV3
from torchvision.transforms.functional import to_tensor
from train_image import main, setup

from unitary_layers import unitarity_error_of
from unitary_layers.models.blocks import ConvUnit

EPS = torch.finfo(torch.float32).eps
LAYOUT = {"stem_width": 4, "widths": (4, 8), "depths": (1, 0)}
SMALL = ["--model-kwargs", *(f"{name}={value}".replace(" ", "") for name, value in LAYOUT.items())]
TINY = [*SMALL, "--images", "digits", "--batch-size", "256", "--epochs", "2", "--threads", "1", "--device", "cpu"]
WHITENED = ("--model", "stiefelnet_projunn", "--model-kwargs", "widths=(4,8)", "depths=(1,0)")
WHITENED += ("--whiten", "100", "--shift", "1", "--channels-last", "--flip-test")
STEPS = 5  # an epoch of 1,437 images has so many batches of 256
TIMES = ("seconds", "steps_per_second")


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the picture at the end."""
    monkeypatch.setattr(ImageRun, "draw", lambda run: None)


def loader_of(train: bool, batch_size: int, **options: float | None) -> Iterator:
    source = SETS["digits"]
    dataset = make_dataset("digits", Path(), train)
    options |= {"size": source.size, "mean": source.mean, "std": source.std}
    return make_loader("digits", dataset, train=train, batch_size=batch_size, **options)


def test_digits_are_split_once_and_have_the_moments_of_the_table():
    ours, theirs = (make_dataset("digits", Path(), train).samples for train in (True, False))
    assert (len(ours), len(theirs)) == (1437, 360)
    pixels = torch.cat([to_tensor(image) for image, _ in ours + theirs])
    digits = load_digits()
    whole = [(image.tobytes(), int(label)) for image, label in zip(digits.images, digits.target, strict=True)]
    split = [((to_tensor(i)[0].double() * 16).round().numpy().tobytes(), label) for i, label in ours + theirs]
    assert sorted(split) == sorted(whole), "no image is in both, none is left out"
    three_digits = 1e-3
    assert pixels.mean().item() == pytest.approx(SETS["digits"].mean[0], abs=three_digits)
    assert pixels.std().item() == pytest.approx(SETS["digits"].std[0], abs=three_digits)


def test_loader_leaves_pixels_alone_unless_told_to_crop():
    source, samples = SETS["digits"], make_dataset("digits", Path(), train=False).samples
    images, labels = next(iter(loader_of(train=False, batch_size=7)))
    expected = torch.stack([(to_tensor(image) - source.mean[0]) / source.std[0] for image, _ in samples[:7]])
    torch.testing.assert_close(images, expected, rtol=0, atol=10 * EPS / source.std[0])
    assert labels.tolist() == [label for _, label in samples[:7]]
    known = {
        tuple(((to_tensor(i) * 255).round().int()).flatten().tolist())
        for i, _ in make_dataset("digits", Path(), True).samples
    }
    for scale, alike in ((1.0, True), (0.3, False)):
        batch, _ = next(iter(loader_of(train=True, batch_size=32, scale=scale)))
        pixels = ((batch * source.std[0] + source.mean[0]) * 255).round().int().flatten(1).tolist()
        assert all(tuple(image) in known for image in pixels) == alike


def test_training_images_are_moved_by_as_many_pixels_as_said():
    source, samples = SETS["digits"], make_dataset("digits", Path(), train=True).samples
    known: dict[tuple[int, ...], tuple[int, int]] = {}
    for image, _ in samples:
        padded = F.pad((to_tensor(image) * 255).round().int().float(), (1, 1, 1, 1), mode="reflect").int()
        for i in range(3):
            for j in range(3):
                known.setdefault(tuple(padded[:, i : i + 8, j : j + 8].flatten().tolist()), (i, j))
    batch, _ = next(iter(loader_of(train=True, batch_size=128, shift=1)))
    pixels = ((batch * source.std[0] + source.mean[0]) * 255).round().int().flatten(1).tolist()
    assert {known[tuple(image)] for image in pixels} == {(i, j) for i in range(3) for j in range(3)}


@pytest.mark.parametrize("name", SETS)
def test_images_are_mirrored_where_that_makes_sense(name: str):
    dataset, source = make_dataset("digits", Path(), train=True), SETS["digits"]
    dark_left = Image.new("L", (8, 8))
    dark_left.paste(255, (4, 0, 8, 8))
    dataset.samples = [(dark_left, 0)] * 64
    options = {"size": source.size, "mean": source.mean, "std": source.std}
    for scale in (0.9, 1.0):
        batch, _ = next(iter(make_loader(name, dataset, train=True, batch_size=64, scale=scale, **options)))
        mirrored = batch[..., :4].mean(dim=(1, 2, 3)) > batch[..., 4:].mean(dim=(1, 2, 3))
        assert set(mirrored.tolist()) == ({True, False} if SETS[name].flips else {False})


def test_the_incomplete_batch_is_dropped_in_training_only():
    assert sum(len(labels) for _, labels in loader_of(train=True, batch_size=256)) == STEPS * 256
    assert sum(len(labels) for _, labels in loader_of(train=False, batch_size=256)) == 360


def folder(root: Path) -> Path:
    """Two classes of four images, in both splits."""
    for split in ("train", "validation"):
        for k, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (40, 32), (150 * k + i, 9 * i, 0)).save(root / split / name / f"{i}.png")
    return root


FOLDER = ["--images", "folder", "--img-size", "32", "--batch-size", "4", "--epochs", "1", "--device", "cpu"]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm leaves images open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_folder_of_images_trains(tmp_path: Path, no_curves: None):
    options = ["--root", str(folder(tmp_path / "images")), *SMALL]
    run = setup([*FOLDER, *options, "--threads", "1", "--out", str(tmp_path / "run")])
    assert run.model.num_classes == 2
    assert run.run()[-1]["step"] == 2


def test_a_folder_must_hold_both_splits_with_the_same_classes(tmp_path: Path):
    root = folder(tmp_path / "images")
    options = [*FOLDER, "--root", str(root), "--out", str(tmp_path / "run")]
    (root / "validation" / "light").rename(root / "validation" / "bright")
    with pytest.raises(ValueError, match="the same classes in both splits"):
        setup(options)
    shutil.rmtree(root / "validation")
    with pytest.raises(ValueError, match="expected subfolders train and validation"):
        setup(options)
    with pytest.raises(ValueError, match="image set must be one of"):
        make_dataset("cats", root, train=True)


def test_a_run_fills_its_folder_and_its_weights_load_into_timm(tmp_path: Path):
    out = tmp_path / "run"
    main([*TINY, "--out", str(out)])
    checkpoints = {"checkpoint.pt", "checkpoint.previous.pt"}
    assert {"config.json", "log.csv", "curves.png", "model.safetensors"} | checkpoints == {
        p.name for p in out.iterdir()
    }
    options = {"in_chans": 1, "img_size": 8, "checkpoint_path": str(out / "model.safetensors"), **LAYOUT}
    again = setup([*TINY, "--out", str(tmp_path / "again")])
    again.model = timm.create_model("orthoresnet_projunn", **options)
    rows = read_rows(out / "log.csv")
    last = rows[-1]
    assert [row["learning_rate"] for row in rows] == pytest.approx([5e-4, 0], abs=1e-9)  # half a cosine, and its end
    assert all(0 <= row[name] <= 1 for row in rows for name in ("accuracy", "test_accuracy"))
    assert again.evaluate()["test_accuracy"] == pytest.approx(last["test_accuracy"], rel=1e-6)  # digits of the CSV
    assert last["unitarity_error"] == pytest.approx(float(unitarity_error_of(again.model)), rel=1e-6)
    assert last["unitarity_error"] < 100 * 8 * EPS


def stop_at(run: ImageRun, step: int) -> None:
    """Runs until this step, and there the user presses Ctrl-C."""
    update = run.update

    def interrupted(*batch: torch.Tensor) -> tuple[float, float]:
        if run.step == step:
            raise KeyboardInterrupt
        return update(*batch)

    run.update = interrupted
    with pytest.raises(KeyboardInterrupt):
        run.run()


def timeless(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--mixup", "0.3", "--ema", "0.9", "--scale", "0.5"),
        ("--opt", "adamw", "--weight-decay", "0.1", "--clip", "1"),
        WHITENED,
    ],
    ids=["projunn", "mixup and average", "adamw", "whitened"],
)
def test_resuming_continues_bit_for_bit(tmp_path: Path, no_curves: None, options: tuple[str, ...]):
    whole = setup([*TINY, *options, "--out", str(tmp_path / "whole")])
    whole.run()
    argv = [*TINY, *options, "--out", str(tmp_path / "run")]
    stop_at(setup(argv), STEPS + 2)
    resumed = setup([*argv, "--resume"])
    assert (resumed.epoch, resumed.step) == (1, STEPS)
    resumed.run()
    for ours, theirs in zip(
        whole.evaluated().state_dict().items(), resumed.evaluated().state_dict().items(), strict=True
    ):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1]), ours[0]
    assert timeless(read_rows(whole.log.path)) == timeless(read_rows(resumed.log.path))
    assert whole.unitarity_error() < 100 * 8 * EPS


def test_epochs_differ(tmp_path: Path, no_curves: None):
    run, labels = setup([*TINY, "--out", str(tmp_path / "run")]), []
    update = run.update
    run.update = lambda inputs, targets: labels.append(targets) or update(inputs, targets)
    run.run()
    assert len(labels) == 2 * STEPS
    assert not torch.equal(labels[0], labels[STEPS])


def test_mixup_mixes_images_and_labels(tmp_path: Path, no_curves: None):
    run, seen = setup([*TINY, "--epochs", "1", "--mixup", "1", "--out", str(tmp_path / "run")]), []
    assert run.run()[-1]["accuracy"] is None
    loss = run.loss
    run.loss = lambda outputs, targets: seen.append(targets) or loss(outputs, targets)
    run.model.register_forward_pre_hook(lambda model, args: seen.append(args[0]))
    inputs, targets = next(iter(run.train_loader))
    run.update(inputs.clone(), targets)
    mixed, labels = seen
    assert not torch.equal(mixed, inputs)
    share = labels.amax(dim=1)[:, None, None, None]  # of the image or of its partner, the batch reversed
    either = [share * a + (1 - share) * b for a, b in ((inputs, inputs.flip(0)), (inputs.flip(0), inputs))]
    errors = torch.stack([(mixed - expected).abs().amax(dim=(1, 2, 3)) for expected in either])
    differ = targets != targets.flip(0)
    assert differ.any()
    assert errors.amin(dim=0)[differ].max() < 1e-5
    assert ((labels > 0).sum(dim=1) == 1 + differ.int()).all()


def test_the_average_is_what_is_tested_and_kept_and_is_orthogonal(tmp_path: Path, no_curves: None):
    run = setup([*TINY, "--lr", "1", "--ema", "0.9", "--out", str(tmp_path / "run")])
    last = run.run()[-1]
    tolerance = 100 * 8 * EPS
    assert isinstance(run.average, ModelEmaV3)
    assert unitarity_error_of(run.average.module) > 10 * tolerance, "a mean of orthogonal matrices is none"
    assert unitarity_error_of(run.evaluated()) < tolerance
    kept = load_file(run.args.out / "model.safetensors")
    for name, value in run.evaluated().state_dict().items():
        assert torch.equal(kept[name], value), name
    assert not torch.equal(kept["head.fc.weight"], run.model.head.fc.weight)
    run.model.load_state_dict(kept)
    run.average = None
    assert run.evaluate()["test_accuracy"] == last["test_accuracy"]


def test_mirror_images_are_tested_in_the_end(tmp_path: Path, no_curves: None, capsys: pytest.CaptureFixture):
    run = setup([*TINY, *WHITENED, "--epochs", "1", "--out", str(tmp_path / "run")])
    run.run()
    model = run.model.eval()
    logits = [(model(x), model(x.flip(-1)), y) for x, y in run.test_loader]
    plain, mirrored, targets = map(torch.cat, zip(*logits, strict=True))
    expected = ((plain + mirrored).argmax(1) == targets).float().mean().item()
    assert run.evaluate(flip=True)["test_accuracy"] == pytest.approx(expected, rel=1e-6)
    assert f"mirror image: step {STEPS}:" in capsys.readouterr().out


def test_the_stem_is_fitted_to_training_images_as_they_are(tmp_path: Path):
    run = setup([*TINY, *WHITENED, "--out", str(tmp_path / "run")])
    source, samples = SETS["digits"], make_dataset("digits", Path(), train=True).samples
    images = torch.stack([(to_tensor(image) - source.mean[0]) / source.std[0] for image, _ in samples[:100]])
    scale = run.model.stem.scale.clone()
    run.model.init_whitening(images)
    torch.testing.assert_close(run.model.stem.scale, scale, rtol=100 * EPS, atol=0)
    assert not run.model.stem.conv.weight.requires_grad
    with pytest.raises(ValueError, match="--whiten needs a model with a whitening stem, got orthoresnet_projunn"):
        setup([*TINY, "--whiten", "100", "--out", str(tmp_path / "other")])


def test_gradients_are_clipped(tmp_path: Path, no_curves: None):
    run, norms = setup([*TINY, "--epochs", "1", "--clip", "1e-3", "--out", str(tmp_path / "run")]), []
    run.optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.cat([p.grad.flatten().abs() for p in run.model.parameters()]).norm())
    )
    run.run()
    assert norms == pytest.approx([1e-3] * STEPS, rel=1e-2)


def test_a_run_is_neither_replaced_nor_mixed_by_accident(tmp_path: Path, no_curves: None):
    argv = [*TINY, "--epochs", "1", "--out", str(tmp_path / "run")]
    setup(argv).run()
    with pytest.raises(RuntimeError, match="holds a run"):
        setup(argv)
    with pytest.raises(RuntimeError, match=r"lr: expected 0.001, got 0.1"):
        setup([*argv, "--resume", "--lr", "0.1"])
    assert [row["step"] for row in setup([*argv, "--resume"]).run()] == [STEPS]
    assert setup([*argv, "--overwrite"]).step == 0
    assert {file.name for file in (tmp_path / "run").iterdir()} == {"config.json", "log.csv"}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--epochs", "0"), "--epochs"),
        (("--threads", "0"), "--threads"),
        (("--clip", "0"), "--clip"),
        (("--scale", "0"), "--scale"),
        (("--scale", "2"), "--scale"),
        (("--shift", "-1"), "--shift"),
        (("--mixup", "0.2", "--batch-size", "7"), "--batch-size"),
        (("--batch-size", "2000"), "--batch-size"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, options: tuple[str, ...], named: str):
    with pytest.raises(ValueError, match=named):
        setup([*TINY, *options, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoint(tmp_path: Path, no_curves: None):
    argv = [*TINY, "--out", str(tmp_path / "run")]
    run = setup(argv)
    loss = run.loss
    run.loss = lambda outputs, targets: loss(outputs, targets) * (torch.nan if run.step == STEPS + 1 else 1)
    with pytest.raises(RuntimeError, match=f"expected a finite loss, got nan in step {STEPS + 2}"):
        run.run()
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())
    assert setup([*argv, "--resume"]).step == STEPS


def test_quick_gives_way_to_what_is_said(tmp_path: Path):
    args = setup(["--quick", "--epochs", "3", "--device", "cpu", *SMALL, "--out", str(tmp_path / "run")]).args
    assert (args.images, args.epochs, args.batch_size) == ("digits", 3, 64)


@pytest.mark.parametrize("count", [3, 4, 10, 11, 12])
@pytest.mark.parametrize("kind", depth.KINDS)
def test_a_plain_network_has_as_many_convolutions_as_said(kind: str, count: int):
    model = depth.make_model(kind, count, num_classes=10, in_chans=1)
    assert sum(isinstance(module, ConvUnit) for module in model.modules()) == count


def test_gradients_keep_their_norm_through_orthogonal_layers_only():
    count, inputs = 12, torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    norms = {}
    for kind in ("orthogonal", "conv"):
        torch.manual_seed(0)
        model = depth.make_model(kind, count, num_classes=10, in_chans=1)
        norms[kind] = depth.gradient_norms(model, inputs, lambda outputs: outputs.square().sum())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())
    assert len(norms["orthogonal"]) == count
    assert norms["orthogonal"] == pytest.approx([norms["orthogonal"][0]] * count, rel=100 * count * EPS)
    assert norms["conv"][0] < 0.1 * norms["conv"][-1]


def test_ordinary_convolutions_start_as_he_et_al_say_or_as_torch_does():
    for kind, variance in (("conv_he", 2), ("conv", 1 / 3)):
        conv = depth.make_model(kind, 6, num_classes=10, in_chans=1).stages[-1].blocks[0].conv
        fan_in = 9 * conv.in_channels
        assert conv.weight.std().item() == pytest.approx(math.sqrt(variance / fan_in), rel=0.02)  # of 147,456 values


DEPTH = ["--epochs", "1", "--batch-size", "512", "--device", "cpu", "--threads", "1"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--depths", "3", "2"), "--depths must be at least 3 .* got 2"),
        (("--epochs", "0"), "--epochs"),
        (("--clip", "0"), "--clip"),
        (("--scale", "2"), "--scale"),
        (("--mixup", "0.2", "--batch-size", "7"), "--batch-size"),
    ],
)
def test_bad_options_are_named_before_the_first_depth(tmp_path: Path, options: tuple[str, ...], named: str):
    with pytest.raises(ValueError, match=named):
        depth.main([*DEPTH, "--depths", "3", *options, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_depth_writes_a_table_and_a_picture(tmp_path: Path, no_curves: None):
    depth.main([*DEPTH, "--depths", "3", "4", "--conv-lr", "0.002", "--out", str(tmp_path)])
    with (tmp_path / "depth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [(kind, str(count)) for count in (3, 4) for kind in depth.KINDS]
    assert [(row["kind"], row["depth"]) for row in rows] == names
    for row in rows:
        options = json.loads((tmp_path / f"{row['kind']}_{row['depth']}" / "config.json").read_text())["options"]
        ours = row["kind"] == "orthogonal"
        assert (options["opt"], options["lr"]) == (("projunn", 0.01) if ours else ("rmsprop", 0.002))
        assert bool(row["unitarity_error"]) == ours
        decay = float(row["gradient_decay"])
        assert decay == pytest.approx(1, rel=100 * 4 * EPS) if ours else row["kind"] == "conv_he" or decay < 0.9
    assert (tmp_path / "depth.png").read_bytes().startswith(b"\x89PNG")
