"""Model cards: what can be measured of a registered model, and the card around it.

python examples/model_card.py                 # measures every model, compares with model_cards/
python examples/model_card.py NAME --write    # writes the measured lines into the card of that name
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import timm
import torch
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

CARDS = Path(__file__).parents[1] / "model_cards"
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


def write(card: Path, values: dict[str, str]) -> None:
    """Puts the measured lines into a card."""
    text = card.read_text()
    for name, value in values.items():
        text = re.sub(rf"^(\s*- {re.escape(name)}): .+$", rf"\g<1>: {value}", text, flags=re.MULTILINE)
    card.write_text(text)


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("names", nargs="*", help="models; all of them if not given")
    options.add_argument("--write", action="store_true", help="write into the cards")
    args = options.parse_args(argv)
    for name in args.names or registered():
        values, card = measure(name), CARDS / f"{name}.md"
        if args.write:
            write(card, values)
        known = read(card) if card.exists() else {}
        print(
            f"{name}: "
            + ", ".join(f"{k} {v}" for k, v in values.items())
            + ("" if known == values else " (not in the card)")
        )


if __name__ == "__main__":
    main()
