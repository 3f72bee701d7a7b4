"""Equal but for rounding: the one tolerance of the layer tests, and the seed-free copies that they compare."""

import torch
from torch import Tensor, nn


def assert_rounding(actual: Tensor, expected: Tensor, *, n: int, c: float = 4) -> None:
    """Same shape and dtype, and every entry within ``c n eps`` of the largest one (of 1, where all are smaller)."""
    __tracebackhide__ = True
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert actual.dtype == expected.dtype, f"dtype {actual.dtype}, expected {expected.dtype}"
    if expected.numel() == 0:
        return
    allowed = c * n * torch.finfo(expected.dtype).eps * max(1.0, float(expected.detach().abs().max()))
    error = float((actual - expected).detach().abs().max())
    assert error <= allowed, f"off by {error:.2e}, tolerance {allowed:.2e}"


def without_our_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a layer as torch's own class would write it."""
    buffers = dict(module.named_buffers())
    return {name: value for name, value in module.state_dict().items() if name not in buffers}
