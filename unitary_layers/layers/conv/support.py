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
