"""Orthogonal convolutions in the place of torch's, with local and with full support."""

from .conv import OrthogonalConv1d as OrthogonalConv1d
from .conv import OrthogonalConv2d as OrthogonalConv2d
from .conv import OrthogonalConv3d as OrthogonalConv3d
