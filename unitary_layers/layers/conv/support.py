"""The two kinds of orthogonal convolution by their descriptions, which TorchScript can keep.

Each kind tells which orthogonal matrices it is made of, how they start, applies them to a signal, and gives the kernel
that they stand for.
"""

from dataclasses import astuple
from typing import Any

from .full import FullSupport
from .local import LocalSupport

Description = tuple[str, tuple[Any, ...]]


def described(support: FullSupport | LocalSupport) -> Description:
    """A support as a tuple of plain values, which TorchScript knows as a constant."""
    return type(support).__name__, astuple(support)


def support_of(description: Description) -> FullSupport | LocalSupport:
    """The support of a description."""
    name, values = description
    return {"FullSupport": FullSupport, "LocalSupport": LocalSupport}[name](*values)


def check_channels(in_channels: int, out_channels: int, groups: int) -> None:
    """Refuses groups that do not divide the channels, with ``ValueError``."""
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            "expected numbers of channels that groups divides, got "
            f"in_channels={in_channels}, out_channels={out_channels}, groups={groups}"
        )
