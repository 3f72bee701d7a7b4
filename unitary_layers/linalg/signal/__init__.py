"""Signals on a grid: their axes, their frequencies, and convolution kernels."""

from .bound import orthogonality_bound as orthogonality_bound
from .bound import orthogonality_penalty as orthogonality_penalty
from .grid import depth_to_space as depth_to_space
from .grid import space_to_depth as space_to_depth
from .kernel import support_penalty as support_penalty
