"""Images through a narrow code and back: orthogonal convolutions beside ordinary ones.

An encoder of three convolutions of stride 2 takes an image to a code of few numbers; a decoder of transposed
convolutions takes the code back. Between them is GroupSort. Of `tied` networks the decoder has the kernels of the
encoder, as adjoints (`layer.adjoint`, `F.conv_transpose2d`), of the others its own (`OrthogonalConvTranspose2d`,
`nn.ConvTranspose2d`). `scaled` networks have a factor for each channel behind a convolution: without one no distance
grows. `frozen` leaves the orthogonal kernels where they start, so that only biases learn. `orthogonium` are the layers
of that package (Boissin et al., arXiv 2501.07930), if it is installed.

    python examples/autoencoder.py --quick
    python examples/autoencoder.py --root data
    python examples/autoencoder.py --draw results/autoencoder.csv

Each network takes its best rate of AdamW among `RATES`, found on the first seed; orthogonal kernels move by the default
rule of their layers. `--out` gets autoencoder.csv, a row for each network, rate and seed, and autoencoder.png; the same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from common.drawing import Curve, add_legend, draw_curves
from common.images import IMAGE_SETS, load_images
from common.table import Row, matching, mean_of, read_table, write_table
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from unitary_layers import GroupSort, OrthogonalConv2d, OrthogonalConvTranspose2d, attach, unitarity_error_of

NETWORKS = ("orthogonal, scaled", "orthogonal, tied, scaled", "orthogonal", "orthogonal, tied", "orthogonal, frozen")
NETWORKS += ("conv", "conv, tied", "orthogonium")
RATES = (1e-3, 3e-3, 1e-2)  # of AdamW
TAPS = {"kernel_size": 4, "stride": 2, "padding": 1}


def layers_of(network: str) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
    """The convolution of a network, and its transposed one."""
    if network == "orthogonium":
        from orthogonium.layers import AdaptiveOrthoConv2d, AdaptiveOrthoConvTranspose2d

        return AdaptiveOrthoConv2d, AdaptiveOrthoConvTranspose2d
    return (nn.Conv2d, nn.ConvTranspose2d) if "conv" in network else (OrthogonalConv2d, OrthogonalConvTranspose2d)


class Back(nn.Module):
    """The adjoint of a convolution, with its kernel, and a bias of its own."""

    def __init__(self, there: nn.Module) -> None:
        super().__init__()
        self.there = [there]  # in a list: its parameters are those of the encoder
        self.bias = nn.Parameter(torch.zeros(there.in_channels))

    def forward(self, x: Tensor) -> Tensor:
        (there,) = self.there
        if isinstance(there, nn.Conv2d):
            return F.conv_transpose2d(x, there.weight, self.bias, there.stride, there.padding)
        return there.adjoint(x) + self.bias[:, None, None]


class Autoencoder(nn.Module):
    """Images ``(b, 1, h, w)``, sides in multiples of 8, to codes ``(b, code, h / 8, w / 8)`` and back."""

    def __init__(self, network: str, widths: list[int], code: int) -> None:
        super().__init__()
        conv, transposed = layers_of(network)
        channels = [1, *widths, code]
        pairs = list(pairwise(channels))
        there = [conv(a, b, **TAPS) for a, b in pairs]
        own = [transposed(b, a, **TAPS) for a, b in pairs]
        back = [Back(layer) for layer in there] if "tied" in network else own
        scaled = "scaled" in network
        self.encoder, self.decoder = chained(there, scaled), chained(back[::-1], scaled)
        if "frozen" in network:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name.endswith("bias"))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class Scale(nn.Module):
    """A factor for each channel, 1 at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None]


def chained(layers: list[nn.Module], scaled: bool) -> nn.Sequential:
    """Layers with GroupSort between them, and where they are scaled a factor for each output."""
    parts: list[nn.Module] = []
    for layer in layers:
        channels = layer.out_channels if hasattr(layer, "out_channels") else len(layer.bias)
        parts += [layer, *([Scale(channels)] if scaled else []), GroupSort(dim=1)]
    return nn.Sequential(*parts[:-1])


def images(name: str, root: Path) -> tuple[Tensor, Tensor]:
    """Training and test images ``(n, 1, h, w)`` in [0, 1], with black around them up to sides in multiples of 8."""
    data = load_images(name, root)
    sets = [data[split][0][:, None].float() / data.get("largest", 255) for split in ("train", "test")]
    more = -sets[0].size(-1) % 8
    return tuple(F.pad(x, (more // 2, more - more // 2) * 2) for x in sets)


def train(model: Autoencoder, x: Tensor, rate: float, seed: int, args: argparse.Namespace) -> float:
    """Mean squared errors by AdamW and a cosine; the seconds of the processor."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    if any(isinstance(m, OrthogonalConv2d) for m in model.modules()):
        attach(model, optimizer)
    scheduler = CosineAnnealingLR(optimizer, args.steps)
    start = time.process_time()
    for _ in tqdm(range(args.steps), leave=False, disable=None):
        batch = x[torch.randint(len(x), (args.batch_size,), generator=generator)]
        loss = F.mse_loss(model(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return time.process_time() - start


@torch.no_grad()
def error_of(model: nn.Module, x: Tensor) -> float:
    """The mean squared error of a pixel in [0, 1]."""
    return sum(F.mse_loss(model(part), part, reduction="sum").item() for part in x.split(1000)) / x.numel()


def keys_of(network: str, rate: float, seed: int, args: argparse.Namespace) -> Row:
    """What tells one run from another."""
    run = {"network": network, "rate": f"{rate:g}", "seed": str(seed)}
    return run | {"steps": str(args.steps), "code": str(args.code), "widths": " ".join(map(str, args.widths))}


def row_of(network: str, rate: float, seed: int, sets: tuple[Tensor, Tensor], args: argparse.Namespace) -> Row:
    """Trains one network."""
    torch.manual_seed(seed)
    model = Autoencoder(network, args.widths, args.code)
    seconds = train(model.train(), sets[0], rate, seed, args)
    ours = network.startswith("orthogonal")
    return keys_of(network, rate, seed, args) | {
        "error": f"{error_of(model.eval(), sets[1]):.6f}",
        "parameters": str(sum(p.numel() for p in model.parameters())),
        "unitarity": f"{float(unitarity_error_of(model)):.1e}" if ours else "",
        "seconds": f"{seconds:.4g}",
    }


def best_rate(rows: list[Row]) -> float:
    """That of the least error."""
    return float(min(rows, key=lambda row: float(row["error"]))["rate"])


def runs(rows: list[Row], sets: tuple[Tensor, Tensor], args: argparse.Namespace) -> Iterator[Row]:
    """Adds the rows that are not there, and gives each: on the first seed all rates, on the others the best one."""
    for network in args.networks:
        cases = [(rate, args.seeds[0]) for rate in args.rates]
        while cases:
            rate, seed = cases.pop(0)
            if not matching(rows, keys_of(network, rate, seed, args)):
                rows.append(row_of(network, rate, seed, sets, args))
                yield rows[-1]
            if not cases and seed == args.seeds[0]:
                tried = [r for rate in args.rates for r in matching(rows, keys_of(network, rate, seed, args))]
                cases = [(best_rate(tried), other) for other in args.seeds[1:]]


def chosen(rows: list[Row]) -> dict[str, list[Row]]:
    """By network the rows of its best rate, in the order of the seeds."""
    found = {}
    for network in dict.fromkeys(row["network"] for row in rows):
        own = matching(rows, {"network": network})
        rate = best_rate(matching(own, {"seed": own[0]["seed"]}))
        found[network] = matching(own, {"rate": f"{rate:g}"})
    return found


def draw(path: Path) -> None:
    """PNG beside a table: error against the rate of AdamW on the first seed."""
    rows = read_table(path)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    curves = []
    for network in dict.fromkeys(row["network"] for row in rows):
        own = matching(rows, {"network": network})
        points = [(float(r["rate"]), float(r["error"])) for r in matching(own, {"seed": own[0]["seed"]})]
        curves.append(Curve(network, sorted(points)))
    draw_curves(axes, curves, log=True)
    axes.set(xscale="log", xlabel="rate of AdamW", ylabel="mean squared error, test images")
    add_legend(axes)
    figure.savefig(path.with_suffix(".png"), dpi=120)


def table(rows: list[Row]) -> Iterator[str]:
    """A line for each network: the mean error over seeds, and each."""
    for network, own in chosen(rows).items():
        each = ", ".join(f"{1000 * float(row['error']):.2f}" for row in own)
        yield (
            f"{network}, AdamW at {own[0]['rate']}: 1000 x error {1000 * mean_of(own, 'error'):.2f} ({each}), "
            f"{own[0]['parameters']} parameters, {mean_of(own, 'seconds'):.0f} s"
        )


def parser() -> argparse.ArgumentParser:
    """Options."""
    options = argparse.ArgumentParser(prog="autoencoder.py", description=__doc__.partition("\n")[0])
    add = options.add_argument
    installed = [n for n in NETWORKS if n != "orthogonium" or importlib.util.find_spec("orthogonium")]
    add("--networks", nargs="+", choices=NETWORKS, default=installed)
    add("--images", choices=IMAGE_SETS, default="fashion")
    add("--root", type=Path, default=Path("data"), help="where the images are, or are downloaded to")
    add("--rates", nargs="+", type=float, default=list(RATES), help="of AdamW")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--widths", nargs=2, type=int, default=[16, 32], help="channels of the first two convolutions")
    add("--code", type=int, default=2, help="channels of the code")
    add("--steps", type=int, default=300, help="training steps")
    add("--batch-size", type=int, default=50)
    add("--threads", type=int, default=1)
    add("--out", type=Path, default=Path("runs/autoencoder"), help="folder of the results")
    add("--quick", action="store_true", help="digits, one seed and rate, twenty steps")
    add("--draw", type=Path, metavar="CSV", help="draw this table anew beside it, and train nothing")
    return options


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.draw is not None:
        return draw(args.draw)
    if args.quick:
        args.images, args.seeds, args.rates, args.steps = "digits", [0], [1e-2], 20
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    path, sets = args.out / "autoencoder.csv", images(args.images, args.root)
    rows = read_table(path)
    for row in runs(rows, sets, args):
        write_table(path, rows)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    draw(path)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
