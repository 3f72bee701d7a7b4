"""Torch's own layers in the place of ours, for networks of the same layout without the constraint."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn


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


def ordinary_linear(*args: Any, update: object, init: object, orthogonal: bool = False, **options: Any) -> nn.Linear:
    """`nn.Linear` in the place of `UnitaryLinear`, started as timm's vision transformers are, or as ours."""
    linear = nn.Linear(*args, **options)
    _start(linear.weight, orthogonal)
    nn.init.zeros_(linear.bias)
    return linear


def ordinary_attention(
    *args: Any, update: object, init: object, score: str, orthogonal: bool = False, **options: Any
) -> nn.MultiheadAttention:
    """`nn.MultiheadAttention` in the place of `UnitaryMultiheadAttention`, started likewise."""
    attention = nn.MultiheadAttention(*args, **options)
    with torch.no_grad():
        for weight in (*attention.in_proj_weight.chunk(3), attention.out_proj.weight):
            _start(weight, orthogonal)
    return attention


def _start(weight: Tensor, orthogonal: bool) -> None:
    if orthogonal:
        nn.init.orthogonal_(weight)
    else:
        trunc_normal_(weight, std=0.02)
