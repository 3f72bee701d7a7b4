"""The autoencoders: what is tied, what is frozen, and a table that goes on where it stopped."""

import argparse
from pathlib import Path

import autoencoder
import pytest
import torch
from common.table import matching, read_table
from torch import nn

from unitary_layers import OrthogonalConvTranspose2d

OURS = [name for name in autoencoder.NETWORKS if name != "orthogonium"]


def options(*argv: str) -> argparse.Namespace:
    return autoencoder.parser().parse_args(["--batch-size", "8", "--steps", "3", *argv])


def made(network: str) -> autoencoder.Autoencoder:
    torch.manual_seed(0)
    return autoencoder.Autoencoder(network, [4, 8], 2)


@pytest.mark.parametrize("network", OURS)
def test_a_code_is_small_and_an_image_comes_back(network: str) -> None:
    model, x = made(network), torch.randn(3, 1, 16, 24)
    assert model.encoder(x).shape == (3, 2, 2, 3)
    assert model(x).shape == x.shape


@pytest.mark.parametrize("network", ["orthogonal, tied", "conv, tied"])
def test_a_tied_decoder_has_the_kernels_of_the_encoder(network: str) -> None:
    model = made(network)
    encoder, decoder = model.encoder[-1], model.decoder[0]
    assert [name for name, _ in model.decoder.named_parameters()] == ["0.bias", "2.bias", "4.bias"]
    if network == "conv, tied":
        twin = nn.ConvTranspose2d(2, 8, **autoencoder.TAPS)
        twin.weight = encoder.weight
    else:
        twin = OrthogonalConvTranspose2d(2, 8, **autoencoder.TAPS)
        twin.weight, twin.shifts = encoder.weight, encoder.shifts
    twin.bias = decoder.bias
    z = torch.randn(3, 2, 2, 2)
    torch.testing.assert_close(decoder(z), twin(z), rtol=0, atol=100 * torch.finfo(torch.float32).eps)


def test_a_scaled_network_begins_as_one_that_is_not() -> None:
    plain, scaled, x = made("orthogonal"), made("orthogonal, scaled"), torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(scaled(x), plain(x), rtol=0, atol=0)
    scaled.encoder[1].weight.data *= 2
    assert torch.equal(scaled.encoder[:2](x), 2 * plain.encoder[:1](x))


@pytest.mark.parametrize("network", OURS)
def test_what_is_not_frozen_moves(network: str) -> None:
    model = made(network)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    autoencoder.train(model, torch.rand(20, 1, 8, 8), 1e-2, 0, options())
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "frozen" not in network or name.endswith("bias")}


def test_images_have_sides_in_multiples_of_8(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.full((2, 28, 28), 255, dtype=torch.uint8)
    monkeypatch.setattr(autoencoder, "load_images", lambda *_: {"train": (pixels, None), "test": (pixels[:1], None)})
    train, test = autoencoder.images("fashion", Path())
    assert (train.shape, test.shape) == ((2, 1, 32, 32), (1, 1, 32, 32))
    assert train.sum() == 2 * 28 * 28
    assert train[..., 2:30, 2:30].min() == 1


def test_the_best_rate_of_the_first_seed_is_taken_for_the_others_and_nothing_is_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--images", "digits", "--networks", "conv", "orthogonal, tied", "--steps", "3", "--batch-size", "8"]
    argv += ["--widths", "4", "8", "--rates", "1e-3", "1e-1", "--seeds", "0", "1", "--out", str(tmp_path)]
    autoencoder.main(argv)
    rows = read_table(tmp_path / "autoencoder.csv")
    assert [(r["network"], r["seed"]) for r in rows] == [
        (network, seed) for network in ("conv", "orthogonal, tied") for seed in ("0", "0", "1")
    ]
    for network in ("conv", "orthogonal, tied"):
        own = matching(rows, {"network": network})
        assert float(own[2]["rate"]) == autoencoder.best_rate(own[:2])
    assert [bool(row["unitarity"]) for row in rows] == [False] * 3 + [True] * 3
    assert (tmp_path / "autoencoder.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("1000 x error") == 2
    monkeypatch.setattr(autoencoder, "train", None)
    autoencoder.main(argv)
    assert read_table(tmp_path / "autoencoder.csv") == rows
