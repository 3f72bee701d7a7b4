"""Recurrent layers in the place of torch's, and what their passes through time share."""

from .cell import UnitaryRNNCell as UnitaryRNNCell
from .rnn import UnitaryRNN as UnitaryRNN
from .words import UnitaryWordRNN as UnitaryWordRNN
