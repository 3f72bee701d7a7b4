"""Tensors in, tensors out: unitary matrices and low-rank factors. No modules, no ``.grad``, no global state."""

from .lowrank import LowRank as LowRank
from .lowrank import orthonormal_basis as orthonormal_basis
from .unitary import haar_unitary as haar_unitary
from .unitary import nearest_unitary as nearest_unitary
from .unitary import unitarity_error as unitarity_error
