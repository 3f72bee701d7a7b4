"""What words by their numbers are asked before they are used."""

import torch
from torch import Tensor

from ...linalg.check import check_dense
from ...linalg.transforms import is_transformed

INTEGERS = (torch.int64, torch.int32)


def check_words(ids: Tensor, words: int) -> None:
    """Refuses what are no words ``(seq,)`` or ``(seq, batch)``, or words that are not in a vocabulary.

    Args:
        ids: numbers of words; in graphs and off memory it is only their dtype and shape that is looked at.
        words: how many the vocabulary has.

    Raises:
        TypeError, ValueError: for another object, layout, dtype or number of dimensions.
        IndexError: for a word below 0 or beyond the last, as ``nn.Embedding``.
    """
    check_dense("input of UnitaryWordRNN", ids)
    if ids.dim() not in (1, 2):
        raise ValueError(f"UnitaryWordRNN: Expected input to be 1D or 2D, got {ids.dim()}D instead")
    if ids.dtype not in INTEGERS:
        raise ValueError(f"expected words as integers, of a dtype in {INTEGERS}, got {ids.dtype}")
    if ids.is_meta or torch.compiler.is_compiling() or is_transformed() or not ids.numel():
        return
    least, most = (int(end) for end in ids.aminmax())
    if least < 0 or most >= words:
        found = least if least < 0 else most
        raise IndexError(f"expected words from 0 to num_embeddings - 1 = {words - 1}, got {found}")


def checked_padding(index: int | None, words: int) -> int | None:
    """``padding_idx`` as ``nn.Embedding`` takes it: counted from the end where it is negative.

    Raises:
        TypeError, ValueError: for what is no integer, or none of a vocabulary of so many words.
    """
    if index is None:
        return None
    if not hasattr(type(index), "__index__"):
        raise TypeError(f"expected padding_idx to be an integer or None, got {index!r}")
    if not -words <= index.__index__() < words:
        raise ValueError(f"expected padding_idx within num_embeddings = {words}, got {index}")
    return index.__index__() % words
