"""Model cards: what can be measured of a registered model, and the card around it.

python examples/model_card.py                       # measures every model, compares with model_cards/
python examples/model_card.py NAME --write          # writes the measured lines into the card of that name
python examples/model_card.py NAME.TAG              # the accuracy of trained weights on all test images of their set
python examples/model_card.py NAME.TAG --run RUN    # makes those weights of the run in that folder first
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import timm
import torch
from common.weights import measure_weights, write_weights
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, bmm_flop

import unitary_layers
from unitary_layers import (
    OrthogonalConv2d,
    StiefelConv2d,
    UnitaryLinear,
    UnitaryMultiheadAttention,
    UnitaryRNN,
    UnitarySSM,
)

CARDS, RESULTS = (Path(__file__).parents[1] / folder for folder in ("model_cards", "results"))
LAYERS = (OrthogonalConv2d, StiefelConv2d, UnitaryLinear, UnitaryMultiheadAttention, UnitaryRNN, UnitarySSM)
LINES = ("Params (M)", "GMACs", "Activations (M)", "Image size")


def registered() -> list[str]:
    """The names that this package adds to timm."""
    package = unitary_layers.__name__
    return [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith(package)]


def measure(name: str) -> dict[str, str]:
    """The lines of a card that follow from the model, on the meta device.

    GMACs are real multiply-adds of convolutions and matrix products for one more image of a batch: what a forward does
    once whatever the batch, making a local kernel, is not in it, nor are Fourier transforms. Activations are the
    numbers that convolutions, recurrent and linear layers put out for one image, as timm counts them.
    """
    model = timm.create_model(name, device="meta").eval()
    channels, height, width = model.default_cfg["input_size"]
    (one, outputs), (two, _) = (_count(model, torch.empty(b, channels, height, width, device="meta")) for b in (1, 2))
    return {
        "Params (M)": f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}",
        "GMACs": f"{(two - one) / 2e9:.2f}",
        "Activations (M)": f"{outputs / 1e6:.2f}",
        "Image size": f"{height} x {width}" + (" (fixed)" if model.default_cfg.get("fixed_input_size") else ""),
    }


def _count(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Floating point operations of a forward, and numbers put out by its layers."""
    outputs: list[int] = []

    def keep(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output).numel())

    kinds = (*LAYERS, nn.Conv2d, nn.Linear)
    hooks = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, kinds)]
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.bmm: _bmm_flop}) as counter, torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops(), sum(outputs)


def _bmm_flop(a: Tensor, b: Tensor, *args: object, **options: object) -> int:
    """Of a batch of products; a complex one counts as four real ones."""
    return bmm_flop(a.shape, b.shape) * (4 if a.is_complex() else 1)


_bmm_flop._get_raw = True  # to be given tensors, and not shapes


def read(card: Path) -> dict[str, str]:
    """The measured lines as they stand in a card."""
    return dict(re.findall(rf"^\s*- ({'|'.join(map(re.escape, LINES))}): (.+)$", card.read_text(), flags=re.MULTILINE))


def rows_of(card: Path) -> dict[str, str]:
    """The rows of trained weights as they stand in a card, by their tags."""
    return dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", card.read_text(), flags=re.MULTILINE))


def write(card: Path, values: dict[str, str]) -> None:
    """Puts the measured lines into a card, and rows of trained weights that begin with a tag in backticks."""
    text = card.read_text()
    for name, value in values.items():
        line, end = (rf"\| {name} \| ", " |") if name[0] == "`" else (rf"\s*- {re.escape(name)}: ", "")
        text = re.sub(rf"^({line}).+$", rf"\g<1>{value}{end}", text, flags=re.MULTILINE)
    card.write_text(text)


def card_of(name: str) -> Path:
    return CARDS / f"{name.partition('.')[0]}.md"


def found(name: str, root: Path) -> dict[str, str]:
    """What is measured of a model, or of its weights with a tag."""
    tag = name.partition(".")[2]
    return {f"`{tag}`": measure_weights(name, root)} if tag else measure(name)


def known(name: str) -> dict[str, str]:
    """What its card says of it."""
    card, tag = card_of(name), name.partition(".")[2]
    if not card.exists():
        return {}
    return {f"`{t}`": row for t, row in rows_of(card).items() if t == tag} if tag else read(card)


def make(name: str, run: Path) -> None:
    """The weights of a finished run, and its log beside the other results."""
    print(f"wrote {write_weights(name, run)}")
    shutil.copy(run / "log.csv", RESULTS / f"{name}.csv")


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("names", nargs="*", help="models, or weights as NAME.TAG; all models if not given")
    options.add_argument("--run", type=Path, help="folder of a finished run, of which to make the weights NAME.TAG")
    options.add_argument("--root", type=Path, default=Path("data"), help="where the images are, or are downloaded to")
    options.add_argument("--write", action="store_true", help="write into the cards")
    args = options.parse_args(argv)
    if args.run is not None:
        if len(args.names) != 1 or "." not in args.names[0]:
            options.error(f"--run needs one NAME.TAG, got {args.names}")
        make(args.names[0], args.run)
    for name in args.names or registered():
        values = found(name, args.root)
        if args.write:
            write(card_of(name), values)
        said = ", ".join(f"{k} {v}" for k, v in values.items())
        print(f"{name}: {said}" + ("" if known(name) == values else " (not in the card)"))


if __name__ == "__main__":
    main()
