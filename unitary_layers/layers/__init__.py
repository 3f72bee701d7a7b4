"""Layers in the place of torch's, a folder a family: same arguments first, unitary weights inside."""

from .activation import GroupSort as GroupSort
from .activation import ModReLU as ModReLU
from .attention import UnitaryMultiheadAttention as UnitaryMultiheadAttention
from .base import UnitaryMethods as UnitaryMethods
from .base import UnitaryModule as UnitaryModule
from .conv import OrthogonalConv1d as OrthogonalConv1d
from .conv import OrthogonalConv2d as OrthogonalConv2d
from .conv import OrthogonalConv3d as OrthogonalConv3d
from .conv import OrthogonalConvRNNCell as OrthogonalConvRNNCell
from .conv import OrthogonalConvTranspose1d as OrthogonalConvTranspose1d
from .conv import OrthogonalConvTranspose2d as OrthogonalConvTranspose2d
from .conv import OrthogonalConvTranspose3d as OrthogonalConvTranspose3d
from .conv import StiefelConv1d as StiefelConv1d
from .conv import StiefelConv2d as StiefelConv2d
from .conv import StiefelConv3d as StiefelConv3d
from .conv import StiefelConvTranspose1d as StiefelConvTranspose1d
from .conv import StiefelConvTranspose2d as StiefelConvTranspose2d
from .conv import StiefelConvTranspose3d as StiefelConvTranspose3d
from .development import UnitaryDevelopment as UnitaryDevelopment
from .hadamard import HadamardLinear as HadamardLinear
from .linear import UnitaryLinear as UnitaryLinear
from .recurrent import HadamardRNN as HadamardRNN
from .recurrent import UnitaryRNN as UnitaryRNN
from .recurrent import UnitaryRNNCell as UnitaryRNNCell
from .recurrent import UnitarySSM as UnitarySSM
from .recurrent import UnitaryWordRNN as UnitaryWordRNN
