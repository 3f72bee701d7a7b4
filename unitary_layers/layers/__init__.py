"""Layers in the place of torch's: same arguments first, unitary weights inside."""

from .activation import GroupSort as GroupSort
from .activation import ModReLU as ModReLU
from .base import UnitaryModule as UnitaryModule
from .cell import UnitaryRNNCell as UnitaryRNNCell
from .conv import OrthogonalConv1d as OrthogonalConv1d
from .conv import OrthogonalConv2d as OrthogonalConv2d
from .conv import OrthogonalConv3d as OrthogonalConv3d
from .linear import UnitaryLinear as UnitaryLinear
from .methods import UnitaryMethods as UnitaryMethods
from .rnn import UnitaryRNN as UnitaryRNN
