"""Converts the layers of a model in place, and turns them back into torch's own."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, type_before_parametrizations

from ..layers import UnitaryModule
from ..layers.base.inputs import check_rule
from ..projunn.rule import UpdateRule
from .kinds import MATRICES
from .plan import LeaveAlone, back, forth
from .report import Conversion, Report
from .swap import Swap, exchange
from .ties import memories, rounded_otherwise, torn
from .values import give_values

STARTS, CONVOLUTIONS = ("nearest", "init"), ("stiefel", "isometry")


@torch.inference_mode(False)  # in which nothing could be trained
def convert(
    model: nn.Module,
    *,
    include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] = (),
    update: UpdateRule = UpdateRule(),  # noqa: B008 (a frozen value)
    start: str = "nearest",
    conv: str = "stiefel",
) -> Report:
    """Makes the layers of a model unitary, in place: each gets the class of this package that takes its place.

    - ``nn.Linear`` becomes :class:`UnitaryLinear`, with orthonormal rows or columns.
    - ``nn.Conv1d`` to ``3d`` and ``nn.ConvTranspose1d`` to ``3d`` become :class:`StiefelConv2d` and its kin: their
      kernels, as matrices, have orthonormal rows or columns. With ``conv="isometry"`` convolutions become
      :class:`OrthogonalConv2d` and its kin, which keep the length of an image.
    - ``nn.RNN`` and ``nn.RNNCell`` become :class:`UnitaryRNN` and :class:`UnitaryRNNCell`, with unitary recurrent
      weights.
    - ``nn.MultiheadAttention`` becomes :class:`UnitaryMultiheadAttention`, with four unitary projections.

    All of them are converted, classifiers and first layers included, unless ``include`` or ``exclude`` says otherwise.
    Embeddings, normalisation layers, gated recurrences, and subclasses of torch's layers are left alone, and so is a
    layer that shares its weight, or memory of it, with one that is not converted. A layer under
    ``torch.nn.utils.parametrizations.orthogonal`` keeps its value and loses the parametrisation.

    Layers stay the same objects, with their names, devices, dtypes (unitary weights are never below float32), hooks,
    training flags and attributes. Parameters stay the same objects too, with ``requires_grad`` and ties. So an
    optimiser may be built before or after; only with complex weights and with ``conv="isometry"`` must it be built
    after. See Note [A layer changes its class].

    Args:
        model: of any classes; its layers are changed.
        include: patterns, as of :mod:`fnmatch`, of the layers to convert: of their names in ``model.named_modules()``
            or of the name of a module that holds them.
        exclude: patterns of those that stay as they are.
        update: how the unitary weights move.
        start: "nearest", the unitary matrix nearest to each weight; or "init", drawn anew by the default of the new
            layer, while biases and input weights are kept.
        conv: "stiefel", orthonormal kernels, which keep all options; or "isometry", for convolutions that do not change
            lengths. These pad circularly and are always drawn anew, but for kernels of one pixel, of which the
            orthonormal one is an isometry already. A convolution with other padding than theirs is left alone.

    Returns:
        A :class:`Report`: printed, a table of what became of each layer.

    Raises:
        TypeError: for what is not a module, and for a pattern that is not a string.
        ValueError: for an unknown option, a pattern that no layer has, or a weight with NaN or infinity. Then nothing
            has been changed.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> report = convert(model, exclude="2")
        >>> [type(layer).__name__ for layer in model], len(report.converted)
        (['UnitaryLinear', 'ReLU', 'Linear'], 1)
    """
    check_rule(update, "dense")
    for name, value, known in (("start", start, STARTS), ("conv", conv, CONVOLUTIONS)):
        if value not in known:
            raise ValueError(f"expected {name} to be one of {known}, got {value!r}")
    layers = _layers(model, MATRICES)
    included, excluded = _matching(model, layers, include=include), _matching(model, layers, exclude=exclude)
    swaps: dict[str, Swap] = {}
    reasons: dict[str, str] = {}
    for name, layer in layers.items():
        try:
            if id(layer) not in included or id(layer) in excluded:
                raise LeaveAlone("excluded" if id(layer) in excluded else "not included")
            swaps[name] = forth(layer, update, start, conv)
        except LeaveAlone as reason:
            reasons[name] = str(reason)
    reasons |= _settle(model, swaps)
    return _carry_out(layers, swaps, reasons)


@torch.inference_mode(False)
def revert(model: nn.Module) -> Report:
    """Makes the layers of this package in a model torch's own again, in place; the model does the same as before.

    The layers may come from :func:`convert` or have been built as they are. What :func:`convert` says of objects,
    hooks, flags and ties holds here too. A unitary weight gets the dtype of the layer's bias; without a bias it keeps
    its own, float32 at least. A convolution with full support gets a kernel as large as the image. The kernel of an
    :class:`OrthogonalConv2d` is made of two weights, and stays tied where another layer makes the same of both. Layers
    for which torch has none are left alone: recurrences with modReLU or complex numbers.

    Args:
        model: of any classes; its layers are changed.

    Returns:
        A :class:`Report`: printed, a table of what became of each layer. The note of a local convolution bounds what
        rounding has left of the isometry, by :func:`orthogonality_bound`, for images with sides in multiples of the
        stride.

    Raises:
        TypeError: for what is not a module.

    Example:
        >>> model = nn.Sequential(UnitaryLinear(8, 16), nn.ReLU())
        >>> report = revert(model)
        >>> model[0]
        Linear(in_features=8, out_features=16, bias=True)
    """
    layers = _layers(model, UnitaryModule)
    swaps: dict[str, Swap] = {}
    reasons: dict[str, str] = {}
    for name, layer in layers.items():
        try:
            swaps[name] = back(layer, model.get_submodule(name.rpartition(".")[0]) if name else None)
        except LeaveAlone as reason:
            reasons[name] = str(reason)
    unlike = rounded_otherwise(model, swaps)
    swaps = {name: swap for name, swap in swaps.items() if name not in unlike}
    return _carry_out(layers, swaps, reasons | unlike)


def _layers(model: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    """The layers of some classes by name, each once, without what belongs to parametrisations."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a module, got {type(model).__name__}")
    of_parametrisations = {
        id(inner) for m in model.modules() if isinstance(m, ParametrizationList) for inner in m.modules()
    }
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, kinds) and id(layer) not in of_parametrisations
    }


def _matching(model: nn.Module, layers: dict[str, nn.Module], **given: str | Iterable[str]) -> set[int]:
    """The identities of the layers that patterns name, by any of their names or of those of modules that hold them.

    Raises:
        ValueError: for a pattern that names none.
    """
    ((option, patterns),) = given.items()
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    wanted, found = {id(layer) for layer in layers.values()}, set()
    names = [(name, id(layer)) for name, layer in model.named_modules(remove_duplicate=False) if id(layer) in wanted]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"expected patterns of names in {option}, got {pattern!r}")
        matching = {key for name, key in names if any(fnmatchcase(outer, pattern) for outer in _outer(name))}
        if not matching and pattern != "*":
            raise ValueError(f"expected patterns of layers in {option}, got {pattern!r}, which matches none")
        found |= matching
    return found


def _outer(name: str) -> list[str]:
    """A name and those of the modules around it, without the model's own."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _settle(model: nn.Module, swaps: dict[str, Swap]) -> dict[str, str]:
    """Gives all layers their values, and takes out those that stay as they are after all, with the reasons."""
    memory = memories(model)
    reasons = torn(model, swaps, memory)
    known: dict[tuple[int, str], Tensor] = {}
    for name in [name for name in swaps if name not in reasons]:
        try:
            give_values(swaps[name], name, known, memory)
        except LeaveAlone as reason:
            reasons[name] = str(reason)
    for name in reasons:
        del swaps[name]
    later = torn(model, swaps, memory)  # layers that share a weight with one of those
    for name in later:
        del swaps[name]
    return reasons | later


def _carry_out(layers: dict[str, nn.Module], swaps: dict[str, Swap], reasons: dict[str, str]) -> Report:
    """Exchanges the layers and says what became of each."""
    rows = []
    for name, layer in layers.items():
        before = type_before_parametrizations(layer).__name__
        if (swap := swaps.get(name)) is None:
            rows.append(Conversion(name, before, note=reasons[name]))
        else:
            rows.append(Conversion(name, before, type(swap.twin).__name__, swap.moved, swap.note))
    exchange(swaps)
    return Report(rows)
