"""Convolutions on finite groups whose operators are unitary."""

from .convolution import UnitaryGroupConv as UnitaryGroupConv
