"""`nn.Conv2d` in the place of `OrthogonalConv2d`, for networks of the same layout without the constraint."""

from __future__ import annotations

from typing import Any

from torch import nn


def ordinary_conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, *, bias: bool, he: bool = False, **options: Any
) -> nn.Conv2d:
    """`nn.Conv2d` in the place of `OrthogonalConv2d`, with its padding; options of ours are left out."""
    dd = {name: options[name] for name in ("device", "dtype")}
    padding = {"padding": kernel_size // 2, "padding_mode": "circular"}
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, bias=bias, **padding, **dd)
    if he:
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv


def he_conv(*args: Any, **options: Any) -> nn.Conv2d:
    """The same, started as He et al. do for ReLU."""
    return ordinary_conv(*args, he=True, **options)
