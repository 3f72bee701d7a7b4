"""Convolutions in the place of torch's: orthogonal maps with local and full support, and orthonormal kernels."""

from .orthogonal import OrthogonalConv1d as OrthogonalConv1d
from .orthogonal import OrthogonalConv2d as OrthogonalConv2d
from .orthogonal import OrthogonalConv3d as OrthogonalConv3d
from .orthogonal_transpose import OrthogonalConvTranspose1d as OrthogonalConvTranspose1d
from .orthogonal_transpose import OrthogonalConvTranspose2d as OrthogonalConvTranspose2d
from .orthogonal_transpose import OrthogonalConvTranspose3d as OrthogonalConvTranspose3d
from .stiefel import StiefelConv1d as StiefelConv1d
from .stiefel import StiefelConv2d as StiefelConv2d
from .stiefel import StiefelConv3d as StiefelConv3d
from .stiefel_transpose import StiefelConvTranspose1d as StiefelConvTranspose1d
from .stiefel_transpose import StiefelConvTranspose2d as StiefelConvTranspose2d
from .stiefel_transpose import StiefelConvTranspose3d as StiefelConvTranspose3d
