"""Layers in the place of torch's, a folder a family: same arguments first, unitary weights inside."""

from .activation import GroupSort as GroupSort
from .activation import ModReLU as ModReLU
from .attention import UnitaryMultiheadAttention as UnitaryMultiheadAttention
from .base import UnitaryMethods as UnitaryMethods
from .base import UnitaryModule as UnitaryModule
from .conv import OrthogonalConv1d as OrthogonalConv1d
from .conv import OrthogonalConv2d as OrthogonalConv2d
from .conv import OrthogonalConv3d as OrthogonalConv3d
from .linear import UnitaryLinear as UnitaryLinear
from .recurrent import UnitaryRNN as UnitaryRNN
from .recurrent import UnitaryRNNCell as UnitaryRNNCell
