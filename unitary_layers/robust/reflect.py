"""A residual block that is an isometry: a reflection on one side of some hyperplanes, the identity on the other."""

import torch
from torch import Tensor
from torch.fx import Proxy

from ..layers import UnitaryLinear, UnitaryMethods
from ..layers.base.symbolic import OneOperation
from ..layers.conv.orthogonal import OrthogonalConvNd
from ..layers.conv.orthogonal_transpose import OrthogonalConvTransposeNd

KINDS = (UnitaryLinear, OrthogonalConvNd, OrthogonalConvTransposeNd)

# Note [Reflections]
# The Jacobian of x - 2 W^T relu(W x + b) is I - 2 W^T D W, with a diagonal D of zeros and ones. If the rows of W are
# orthonormal, those that D chooses are too, and this is the reflection at the space that is orthogonal to them. So the
# block is an isometry wherever it has a derivative, and 1-Lipschitz everywhere, as it is continuous. If W W^T is not I
# and |W| <= 1 all the same (more rows than columns, zeros around an image), then 0 <= W^T D W <= I: it is 1-Lipschitz.


class ReflectBlock(UnitaryMethods, OneOperation):
    r"""``x - 2 W^T relu(W x + b)`` with a layer's W of orthonormal rows: an isometry almost everywhere.

    See Note [Reflections]. It starts from the input, as a residual block does, and keeps the norm of every gradient, as
    a residual block does not. The convex potential layer of Meunier et al. has this form with any W, and divides by its
    norm, found by power iteration; here the norm is 1.

    Source: L. Meunier, B. Delattre, A. Araujo, A. Allauzen, "A dynamical system perspective for Lipschitz neural
    networks", ICML 2022, arXiv 2110.12690.

    Args:
        layer: what W and b are of: a real :class:`unitary_layers.UnitaryLinear`, orthogonal convolution or transposed
            one, with dense gradients. With more outputs than it has orthonormal rows, or zeros around the image, the
            block is 1-Lipschitz and no isometry.

    Shape:
        Input and output as the input of the layer.

    Raises:
        TypeError: for a layer of another kind.
        ValueError: for a complex one, one with factored gradients, or one with ``weight_bits``.

    Example:
        >>> from unitary_layers import OrthogonalConv2d
        >>> block = ReflectBlock(OrthogonalConv2d(16, 8, 3, padding=1))
        >>> block(torch.randn(2, 16, 8, 8)).square().sum().backward()
        >>> block.projunn_step()
    """

    def __init__(self, layer: UnitaryLinear | OrthogonalConvNd | OrthogonalConvTransposeNd) -> None:
        super().__init__()
        if not isinstance(layer, KINDS):
            raise TypeError(
                f"expected a UnitaryLinear or an orthogonal convolution, which have an adjoint, got {type(layer)}"
            )
        if layer.is_complex or layer.gradient != "dense":
            raise ValueError(f"expected a real layer with dense gradients, got {layer}")
        if layer.quantiser is not None:
            raise ValueError(f"expected a layer without weight_bits, whose rows are not orthonormal, got {layer}")
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return self.recorded(input)
        back = self.layer.adjoint(torch.relu(self.layer(input)))
        return input.to(back.dtype) - 2 * back  # under autocast that of the layer
