"""``python -m unitary_layers``: versions, devices, models, trained weights, and a self-test of a few seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version

import timm
import torch
from torch import Tensor, nn

from . import (
    OrthogonalConv2d,
    StiefelConv2d,
    UnitaryLinear,
    UnitaryRNN,
    __version__,
    attach,
    unitarity_error_of,
)
from .testing import assert_isometry, assert_unitary

STEPS = 20
LAYERS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "UnitaryLinear": (lambda **dd: UnitaryLinear(32, 32, **dd), (16, 32)),
    "UnitaryLinear, factored": (lambda **dd: UnitaryLinear(32, 32, gradient="factored", **dd), (16, 32)),
    "UnitaryLinear, 16 x 32": (lambda **dd: UnitaryLinear(32, 16, **dd), (16, 32)),
    "UnitaryRNN": (lambda **dd: UnitaryRNN(4, 32, **dd), (10, 16, 4)),
    "OrthogonalConv2d, local": (lambda **dd: OrthogonalConv2d(8, 8, 3, **dd), (4, 8, 8, 8)),
    "OrthogonalConv2d, full": (lambda **dd: OrthogonalConv2d(8, 8, input_size=8, **dd), (4, 8, 8, 8)),
    "StiefelConv2d": (lambda **dd: StiefelConv2d(8, 8, 3, **dd), (4, 8, 8, 8)),
}


def versions() -> Iterator[str]:
    """What is installed, and what it runs on."""
    yield f"unitary_layers {__version__}"
    yield ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "einops"))
    yield f"Python {sys.version.split()[0]}"
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield "devices: " + ", ".join([f"cpu ({torch.get_num_threads()} threads)", *cards])
    yield "models: " + ", ".join(timm.list_models("*projunn*"))
    yield "trained weights: " + ", ".join(timm.list_models("*projunn*", pretrained=True))


def trained(layer: nn.Module, shape: tuple[int, ...], device: str) -> tuple[float, float, float]:
    """The loss of a layer before and after some steps, and the error of its weights; raises if one is not unitary."""
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    attach(layer, optimizer)
    x = torch.randn(shape, device=device)
    with torch.no_grad():
        target = torch.randn_like(_output(layer(x)))
    losses = []
    for _ in range(STEPS + 1):
        loss = (_output(layer(x)) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_unitary(layer)
    return losses[0], losses[-1], float(unitarity_error_of(layer))


def _output(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def self_test(device: str) -> Iterator[str]:
    """A line for each layer that was trained.

    Raises:
        AssertionError: if a weight is not unitary, a loss does not fall, or a layer is no isometry.
    """
    for name, (build, shape) in LAYERS.items():
        before, after, error = trained(build(device=device), shape, device)
        if not after < before:
            raise AssertionError(f"{name}: expected a loss below {before:.4f} after {STEPS} steps, got {after:.4f}")
        yield f"  {name:<24} loss {before:.3f} -> {after:.3f}, |W^H W - I| = {error:.1e}"
    assert_isometry(OrthogonalConv2d(8, 8, 3, device=device), (8, 8, 8), device=device)
    yield "  OrthogonalConv2d keeps distances"


def main() -> None:
    """Prints all of it, line by line."""
    for line in versions():
        print(line)
    for device in ["cpu"] + (["cuda"] if torch.cuda.is_available() else []):
        torch.manual_seed(0)
        started = time.perf_counter()
        print(f"self-test on {device}:")
        for line in self_test(device):
            print(line)
        print(f"  passed in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
