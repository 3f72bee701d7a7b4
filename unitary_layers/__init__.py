"""Unitary and orthogonal layers for PyTorch and timm, trained by projUNN's rank-k updates.

Source: B. Kiani, R. Balestriero, Y. LeCun, S. Lloyd, "projUNN: efficient method for training deep networks with unitary
matrices", NeurIPS 2022, arXiv 2203.05483.

Example:
    >>> import torch
    >>> from unitary_layers import UnitaryRNN
    >>> model = UnitaryRNN(8, 64, nonlinearity="modrelu")
    >>> output, h_n = model(torch.randn(100, 4, 8))
    >>> h_n.square().mean().backward()
    >>> model.projunn_step()
"""

from ._version import __version__ as __version__
from .conversion import Conversion as Conversion
from .conversion import Report as Report
from .conversion import convert as convert
from .conversion import revert as revert
from .layers import GroupSort as GroupSort
from .layers import HadamardLinear as HadamardLinear
from .layers import HadamardRNN as HadamardRNN
from .layers import ModReLU as ModReLU
from .layers import OrthogonalConv1d as OrthogonalConv1d
from .layers import OrthogonalConv2d as OrthogonalConv2d
from .layers import OrthogonalConv3d as OrthogonalConv3d
from .layers import OrthogonalConvRNNCell as OrthogonalConvRNNCell
from .layers import OrthogonalConvTranspose1d as OrthogonalConvTranspose1d
from .layers import OrthogonalConvTranspose2d as OrthogonalConvTranspose2d
from .layers import OrthogonalConvTranspose3d as OrthogonalConvTranspose3d
from .layers import StiefelConv1d as StiefelConv1d
from .layers import StiefelConv2d as StiefelConv2d
from .layers import StiefelConv3d as StiefelConv3d
from .layers import StiefelConvTranspose1d as StiefelConvTranspose1d
from .layers import StiefelConvTranspose2d as StiefelConvTranspose2d
from .layers import StiefelConvTranspose3d as StiefelConvTranspose3d
from .layers import UnitaryDevelopment as UnitaryDevelopment
from .layers import UnitaryGraphConv as UnitaryGraphConv
from .layers import UnitaryGroupConv as UnitaryGroupConv
from .layers import UnitaryLinear as UnitaryLinear
from .layers import UnitaryMethods as UnitaryMethods
from .layers import UnitaryModule as UnitaryModule
from .layers import UnitaryMultiheadAttention as UnitaryMultiheadAttention
from .layers import UnitaryRNN as UnitaryRNN
from .layers import UnitaryRNNCell as UnitaryRNNCell
from .layers import UnitarySSM as UnitarySSM
from .layers import UnitaryWordRNN as UnitaryWordRNN
from .linalg import depth_to_space as depth_to_space
from .linalg import haar_unitary as haar_unitary
from .linalg import nearest_unitary as nearest_unitary
from .linalg import orthogonality_bound as orthogonality_bound
from .linalg import orthogonality_penalty as orthogonality_penalty
from .linalg import space_to_depth as space_to_depth
from .linalg import support_penalty as support_penalty
from .linalg import unitarity_error as unitarity_error
from .models import OrthoResNet as OrthoResNet
from .models import OrthoViT as OrthoViT
from .models import StiefelNet as StiefelNet
from .models import UnitaryPixelRNN as UnitaryPixelRNN
from .models import UnitaryPixelSSM as UnitaryPixelSSM
from .projunn import UpdateRule as UpdateRule
from .projunn import low_rank as low_rank
from .projunn import projunn_d as projunn_d
from .projunn import projunn_t as projunn_t
from .training import ProjUNN as ProjUNN
from .training import attach as attach
from .training import drop_gradients as drop_gradients
from .training import projunn_step as projunn_step
from .training import register_with_timm
from .training import retract_ as retract_
from .training import share_gradients as share_gradients
from .training import unitarity_error_of as unitarity_error_of
from .training import unitary_weights as unitary_weights
from .training import use_grad_scaler as use_grad_scaler

register_with_timm()
del register_with_timm
