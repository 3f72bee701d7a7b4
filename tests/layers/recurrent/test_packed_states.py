"""The initial state of a packed sequence, in every recurrent layer."""

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from unitary_layers import HadamardRNN, UnitaryRNN, UnitarySSM, UnitaryWordRNN

LAYERS = {
    "rnn": (lambda: UnitaryRNN(3, 4), torch.float32),
    "hadamard": (lambda: HadamardRNN(3, 4), torch.float32),
    "ssm": (lambda: UnitarySSM(3, 4), torch.complex64),
    "words": (lambda: UnitaryWordRNN(6, 4), torch.float32),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(1, 2, 4), (1, 4, 4), (3, 4), (4,)])
def test_one_of_another_batch_is_refused_in_words(name, shape):
    build, dtype = LAYERS[name]
    sequences = [torch.arange(n) if name == "words" else torch.randn(n, 3) for n in (2, 3, 1)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        build()(packed, torch.zeros(shape, dtype=dtype))
