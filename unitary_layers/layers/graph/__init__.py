"""Convolutions on graphs whose operators are unitary."""

from .convolution import UnitaryGraphConv as UnitaryGraphConv
