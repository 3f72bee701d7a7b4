"""Tensors in, tensors out: unitary matrices, low-rank factors, spectra and kernels. No modules, no ``.grad``."""

from .grid import depth_to_space as depth_to_space
from .grid import space_to_depth as space_to_depth
from .kernel import support_penalty as support_penalty
from .lowrank import LowRank as LowRank
from .lowrank import orthonormal_basis as orthonormal_basis
from .unitary import haar_unitary as haar_unitary
from .unitary import nearest_unitary as nearest_unitary
from .unitary import unitarity_error as unitarity_error
