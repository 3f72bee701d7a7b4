"""How far outputs may be apart, over how far the inputs are: of a module, from the layers it is made of."""

import math
import operator
from collections.abc import Callable, Iterator
from functools import partial, singledispatch
from typing import Any, TypeVar

import torch
from torch import nn

from ..layers import GroupSort, HadamardLinear, UnitaryGroupConv, UnitaryLinear, UnitaryModule
from ..layers.base.inputs import as_sides
from ..layers.conv.orthogonal import OrthogonalConvNd
from ..layers.conv.orthogonal_transpose import OrthogonalConvTransposeNd
from ..layers.conv.stiefel import StiefelConvNd
from ..layers.conv.stiefel_transpose import StiefelConvTransposeNd
from ..layers.conv.stiefelnd import lipschitz_of
from ..linalg.unitary import double
from .activation import AbsActivation, HouseholderActivation
from .centering import BatchCentering, LayerCentering
from .certificate import rows_of
from .linear import UnitNormLinear
from .pooling import NormPool, ProjectionPool
from .reflect import ReflectBlock
from .shift import SpatialShift
from .unaltered import check_precision, check_unitary

# Note [Known bounds]
# The constant of a chain is at most the product of those of its links. A constant is known of few layers: isometries
# and their adjoints, elementwise functions of slopes up to 1, permutations, paddings with zeros, poolings of windows
# that do not overlap, matrices by their largest singular value. What is unknown is refused, and not taken for 1: a
# certificate would else prove what is false. So is a subclass with a forward pass of its own, such as a batch norm with
# an activation, and a module with hooks. Dropout and batch norm are known in evaluation only, where the one is the
# identity and the other an affine map. Tanh and sigmoid have slopes up to 1 of real numbers alone.

Bound = TypeVar("Bound", bound=Callable[[Any], float])


@singledispatch
def lipschitz_bound(module: nn.Module) -> float:
    """By how much a module enlarges the Euclidean distance of two inputs at most; see Note [Known bounds].

    Known are the layers of this package that keep distances, those of PyTorch that do not enlarge them, ``nn.Linear``,
    batch norms in evaluation, and ``nn.Sequential`` of such, nested as one likes. The bound of a chain is the product,
    which may be far above the truth. Those of tanh and sigmoid are of real inputs: complex ones have poles there.

    A module of one's own becomes known by ``lipschitz_bound.register(Mine, lambda module: 1.0)``, and then whatever
    contains it.

    The bound is of the weights that the module works with now, each unitary one of which is looked at. It is not that
    of a compiled graph, which takes averages as they are, nor of a pass in half precision, by autocast or for such an
    input. There a matrix with r rows or columns, whichever are fewer, is rounded to one whose norm may be larger by
    ``sqrt(r) eps / 2``, and the kernel of a convolution as :func:`unitary_layers.orthogonality_bound` says.

    Args:
        module: in evaluation, where that makes a difference.

    Returns:
        A bound, up to rounding; 1.0 for a chain that enlarges no distance.

    Raises:
        ValueError: for a module of which no bound is known, or none in training; for unitary weights that are
            parametrised, replaced, off the manifold in training, not unitary as they are used, or beside parameters of
            half precision; for tanh and sigmoid beside a complex layer.

    Example:
        >>> from unitary_layers import OrthogonalConv2d
        >>> lipschitz_bound(torch.nn.Sequential(OrthogonalConv2d(3, 8, 3, padding=1), torch.nn.ReLU()))
        1.0
    """
    raise ValueError(
        f"expected a module of which a Lipschitz bound is known, got a {type(module).__name__}; "
        "lipschitz_bound.register(its class, a function of it) makes one known"
    )


def _known(*kinds: type[nn.Module]) -> Callable[[Bound], Bound]:
    """Makes a function the bound of some classes, and of their subclasses with the same forward pass."""

    def decorated(bound: Bound) -> Bound:
        for kind in kinds:
            lipschitz_bound.register(kind, partial(_with_forward_of, kind, bound))
        return bound

    return decorated


def _with_forward_of(kind: type[nn.Module], bound: Callable[[Any], float], module: nn.Module) -> float:
    if type(module).forward is not kind.forward or "forward" in vars(module):
        raise ValueError(f"expected the forward pass of {kind.__name__}, got one of {type(module).__name__} itself")
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(
            f"expected a {kind.__name__} without forward hooks, which may change what goes in or comes out"
        )
    if isinstance(module, UnitaryModule):
        check_unitary(module)
        check_precision(module)
    return bound(module)


@_known(nn.Sequential)
def _of_chain(module: nn.Sequential) -> float:
    bound = 1.0
    for name, child in module._modules.items():  # named_children() would skip the second use of a layer
        try:
            bound *= lipschitz_bound(child)
        except ValueError as error:
            raise ValueError(f"at {name!r}: {error}") from None
    check_precision(module)
    _check_poles(module)
    return bound


def _check_poles(chain: nn.Sequential) -> None:
    """Refuses what has poles in the complex plane where a complex layer is as well, until a modulus is taken."""
    has_complex, kind = False, ""
    for link in _links(chain):
        if isinstance(link, NormPool) or (isinstance(link, AbsActivation) and link.share == 1):
            has_complex, kind = False, ""
            continue
        has_complex = has_complex or any(p.is_complex() for p in link.parameters()) or _has_pairs(link)
        kind = type(link).__name__ if isinstance(link, (nn.Tanh, nn.Sigmoid)) else kind
        if has_complex and kind:
            raise ValueError(
                f"expected a {kind} of real inputs, got one beside a complex layer, where its slope has no bound; "
                "bound the real and the complex part by themselves, if a layer of your own is between them"
            )


def _links(chain: nn.Sequential) -> Iterator[nn.Module]:
    for child in chain._modules.values():
        if isinstance(child, nn.Sequential):
            yield from _links(child)
        elif child is not None:
            yield child


def _has_pairs(module: nn.Module) -> bool:
    return any(isinstance(part, UnitaryModule) and part.is_complex for part in module.modules())


@_known(nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
@_known(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
@_known(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.Softsign)
@_known(GroupSort, AbsActivation, HouseholderActivation, SpatialShift, NormPool, ProjectionPool, LayerCentering)
@_known(HadamardLinear, UnitaryGroupConv, OrthogonalConvNd, OrthogonalConvTransposeNd)
def _one(module: nn.Module) -> float:
    return 1.0


@_known(StiefelConvNd, StiefelConvTransposeNd)
def _of_orthonormal_kernel(module: StiefelConvNd | StiefelConvTransposeNd) -> float:
    bound = lipschitz_of(module) * module.scale  # module.lipschitz is that of the options it was made with
    return 1.0 if math.isclose(bound, 1) else bound


@_known(UnitaryLinear)
def _of_unitary(module: UnitaryLinear) -> float:
    if module.quantiser is not None:
        raise ValueError("expected a UnitaryLinear without weight_bits: a rounded weight is not unitary")
    return 1.0


@_known(ReflectBlock)
def _of_reflection(module: ReflectBlock) -> float:
    if (bound := lipschitz_bound(module.layer)) > 1:
        raise ValueError(f"expected a ReflectBlock of a layer that enlarges no distance, got one of bound {bound}")
    return 1.0  # also where the layer has a smaller one; see Note [Reflections]


@_known(nn.Linear, UnitNormLinear)
@torch.no_grad()
def _of_matrix(module: nn.Module) -> float:
    return float(torch.linalg.matrix_norm(double(rows_of(module)), 2))


@_known(nn.LeakyReLU)
def _of_slope(module: nn.LeakyReLU) -> float:
    return max(1.0, abs(module.negative_slope))


MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
MEANS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


@_known(*MAXIMA, *MEANS)
def _of_windows(module: nn.MaxPool2d | nn.AvgPool2d) -> float:
    """The mean of k numbers changes by at most 1 / sqrt(k) of what they do, their maximum by all of it."""
    dims = next(i for i, pair in enumerate(zip(MAXIMA, MEANS, strict=True), 1) if isinstance(module, pair))
    sizes, strides = (as_sides(name, getattr(module, name), dims) for name in ("kernel_size", "stride"))
    has_gaps = as_sides("dilation", getattr(module, "dilation", 1), dims) != (1,) * dims
    if has_gaps or getattr(module, "divisor_override", None) or any(map(operator.lt, strides, sizes)):
        raise ValueError(f"expected a pooling of windows that do not overlap, got {module}")
    is_full = isinstance(module, MEANS) and not module.ceil_mode and not any(as_sides("p", module.padding, dims, 0))
    return 1 / math.sqrt(math.prod(sizes)) if is_full else 1.0


@_known(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
@_known(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
def _of_all(module: nn.AdaptiveMaxPool2d | nn.AdaptiveAvgPool2d) -> float:
    sizes = module.output_size
    if any(size != 1 for size in (sizes if isinstance(sizes, (tuple, list)) else (sizes,))):
        raise ValueError(f"expected a pooling to size 1, got {module}: the windows of others may overlap")
    return 1.0


@_known(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, BatchCentering)
def _in_evaluation(module: nn.Module) -> float:
    if module.training:
        raise ValueError(f"expected a {type(module).__name__} in evaluation, got one in training")
    return 1.0


@_known(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
@torch.no_grad()
def _of_statistics(module: nn.BatchNorm2d) -> float:
    _in_evaluation(module)
    if module.running_var is None:
        raise ValueError(f"expected running statistics, got a {type(module).__name__} without")
    scale = (module.running_var + module.eps).rsqrt()
    return float((scale if module.weight is None else scale * module.weight.abs()).max())
