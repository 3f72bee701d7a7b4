"""Tensors in, tensors out: unitary matrices, low-rank factors, spectra and kernels. No modules, no ``.grad``."""

from .adjacency import Adjacency as Adjacency
from .adjacency import normalized_adjacency as normalized_adjacency
from .dihedral import dihedral_moves as dihedral_moves
from .dihedral import dihedral_views as dihedral_views
from .hadamard import hadamard_matrix as hadamard_matrix
from .hadamard import walsh_hadamard as walsh_hadamard
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
