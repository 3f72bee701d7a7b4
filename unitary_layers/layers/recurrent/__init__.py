"""Recurrent layers in the place of torch's, and what their passes through time share."""

from .cell import UnitaryRNNCell as UnitaryRNNCell
from .hadamard import HadamardRNN as HadamardRNN
from .rnn import UnitaryRNN as UnitaryRNN
from .ssm import UnitarySSM as UnitarySSM
from .words import UnitaryWordRNN as UnitaryWordRNN
