"""Models for timm; importing them registers their names."""

from .orthoresnet import OrthoResNet as OrthoResNet
from .unitary_pixel import UnitaryPixelRNN as UnitaryPixelRNN
