"""Tensors in, tensors out: unitary matrices, low-rank factors, spectra and kernels. No modules, no ``.grad``."""

from .lowrank import LowRank as LowRank
from .lowrank import orthonormal_basis as orthonormal_basis
from .signal import depth_to_space as depth_to_space
from .signal import orthogonality_bound as orthogonality_bound
from .signal import orthogonality_penalty as orthogonality_penalty
from .signal import space_to_depth as space_to_depth
from .signal import support_penalty as support_penalty
from .unitary import haar_unitary as haar_unitary
from .unitary import nearest_unitary as nearest_unitary
from .unitary import unitarity_error as unitarity_error
