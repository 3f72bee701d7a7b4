"""Models for timm; importing them registers their names."""

from .orthoresnet import OrthoResNet as OrthoResNet
from .orthovit import OrthoViT as OrthoViT
from .stiefelnet import StiefelNet as StiefelNet
from .unitary_pixel import UnitaryPixelRNN as UnitaryPixelRNN
from .unitary_pixel_ssm import UnitaryPixelSSM as UnitaryPixelSSM
