"""OrthoResNet: image classifiers of orthogonal convolutions, and their entry points in timm."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import GroupSort, OrthogonalConv2d
from ..projunn import UpdateRule
from .arguments import layer_of, rule_of, sides_of
from .blocks import BLOCKS, ConvUnit, Size, Stage, UnitSpec
from .pretrained import images_of, trained, with_own_stem
from .protocol import StagedClassifier

__all__ = ["OrthoResNet"]  # register_model adds the entry points
SUPPORTS = ("full", "local")


class OrthoResNet(StagedClassifier):
    """Stem, stages of blocks, pooled linear head; every convolution is an orthogonal operator.

    Resolution and width change in a transition before the blocks of a stage, so that each block maps a space to itself.
    A transition is a convolution that turns the pixels of its stride into channels first. With full support, whose
    matrices that would enlarge, it is a max-pooling (1-Lipschitz) and a convolution, except in an isometry.

    Args:
        depths: blocks of each stage.
        widths: channels of each stage. A stage halves the resolution, except the first where its width is the stem's.
        stem_width: channels of the stem.
        stem_stride: stride of the stem.
        block: "free" (residual), "convex" (1-Lipschitz) or "isometry" (no skip); see ``models/blocks.py``.
        bottleneck: how many times narrower the blocks are inside; 1 for none.
        support: "full" (kernels as large as the image) or "local" (3 x 3; images of any size).
        norm_layer: class of a norm, or its name; None for batch norm in free blocks and for none in the others.
        act_layer: class of an activation, or its name; None for ReLU in free blocks, :class:`GroupSort` in the others.
        update: the rule by which the orthogonal weights move, a dict of its options, or its variant, "D" or "T".
        init: start of the convolutions; None for their own default.
        conv_layer: another layer in the place of :class:`OrthogonalConv2d`, to compare with, or its name.
        gradient: "dense" or "factored", the latter for full support alone.
        img_size: height and width; needed for full support.
        in_chans: channels of the image.
        num_classes: classes; 0 for no classifier.
        global_pool: "avg", "max", "avgmax", "catavgmax", or "" for none.
        drop_rate: dropout before the classifier.
        device: of the parameters.
        dtype: real floating point type.

    Shape:
        Input ``(b, in_chans, h, w)``, output ``(b, num_classes)``.

    Attributes:
        lipschitz: Lipschitz constant of :meth:`forward_features` where one is known (1), else infinity.

    Raises:
        ValueError: for options that do not fit, or an isometry whose channels do not hold what comes in.

    Example:
        >>> model = OrthoResNet((1, 1), (16, 32), stem_width=16, block="convex", support="local")
        >>> model(torch.randn(2, 3, 8, 8)).shape, model.lipschitz
        (torch.Size([2, 10]), 1.0)
    """

    def __init__(
        self,
        depths: Sequence[int] = (1, 0, 1),
        widths: Sequence[int] = (128, 256, 512),
        stem_width: int = 64,
        stem_stride: int = 1,
        *,
        block: str = "free",
        bottleneck: int = 1,
        support: str = "full",
        norm_layer: str | Callable[..., nn.Module] | None = None,
        act_layer: str | Callable[..., nn.Module] | None = None,
        update: UpdateRule | Mapping[str, Any] | str = "T",
        init: str | Callable[..., Tensor] | None = None,
        conv_layer: str | Callable[..., nn.Module] = OrthogonalConv2d,
        gradient: str = "dense",
        img_size: int | Sequence[int] | None = None,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        arguments = dict(locals())
        super().__init__()
        dd = self.begin(arguments)
        if block not in BLOCKS or support not in SUPPORTS or len(depths) != len(widths):
            raise ValueError(
                f"expected block in {tuple(BLOCKS)}, support in {SUPPORTS} and as many depths as widths, got "
                f"{block!r}, {support!r}, {tuple(depths)} and {tuple(widths)}"
            )
        self.block = block
        self.img_size = sides_of(img_size) if support == "full" else None
        spec = UnitSpec(
            None if support == "full" else 3,
            *_layers(block, norm_layer, act_layer),
            rule_of(update),
            init,
            block != "isometry",
            layer_of("conv_layer", conv_layer) or OrthogonalConv2d,
            gradient,
            device,
            dtype,
        )
        self._build(spec, (stem_width, *widths), depths, stem_stride, bottleneck)
        self.lipschitz = math.inf if block == "free" else spec.lipschitz
        self.finish(widths, self._reductions, **dd)

    def _build(
        self, spec: UnitSpec, widths: Sequence[int], depths: Sequence[int], stem_stride: int, bottleneck: int
    ) -> None:
        """Stem and stages, with the size of the image wherever a convolution depends on it."""
        taps = 7 if stem_stride > 2 and self.img_size is None else None
        self._check(self.in_chans, widths[0], stem_stride)
        self.stem = ConvUnit(spec, self.in_chans, widths[0], self.img_size, stem_stride, taps)
        size, reduction = _over(self.img_size, stem_stride), stem_stride
        stages, self._reductions = [], []
        for i, depth in enumerate(depths):
            before, channels = widths[i], widths[i + 1]
            transition: nn.Module = nn.Identity()
            if i > 0 or channels != before:
                transition = self._transition(spec, before, channels, size)
                size, reduction = _over(size, 2), reduction * 2
            blocks = [BLOCKS[self.block](spec, channels, size, bottleneck) for _ in range(depth)]
            stages.append(Stage(transition, blocks))
            self._reductions.append(reduction)
        self.stages = nn.Sequential(*stages)

    def _transition(self, spec: UnitSpec, before: int, channels: int, size: Size) -> nn.Module:
        """To half the resolution and other channels."""
        self._check(before, channels, 2)
        if size is None or self.block == "isometry":
            return ConvUnit(spec, before, channels, size, stride=2)
        return nn.Sequential(nn.MaxPool2d(2), ConvUnit(spec, before, channels, _over(size, 2)))

    def _check(self, before: int, channels: int, stride: int) -> None:
        """Refuses an isometry that loses channels."""
        if self.block == "isometry" and channels < before * stride**2:
            raise ValueError(
                f"expected an isometry to hold all pixels of a stride {stride} in its channels, "
                f"{before} * {stride} * {stride}, got {channels} channels"
            )

    @torch.jit.ignore
    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Makes sure that images of a size fit: any multiple of the total stride where the support is local.

        Raises:
            ValueError: for a size that does not fit; with full support, for any but that of the model.
        """
        size, reduction = sides_of(img_size), self.feature_info[-1]["reduction"]
        if self.img_size is not None and size != self.img_size:
            raise ValueError(f"expected img_size={self.img_size}, which full support fixes, got {size}")
        if self.img_size is None and any(side % reduction or side < 1 for side in size):
            raise ValueError(f"expected sides in multiples of {reduction}, got {size}")


def _over(size: Size, stride: int) -> Size:
    return None if size is None else (size[0] // stride, size[1] // stride)


def _layers(block: str, norm_layer: Any, act_layer: Any) -> tuple[Any, Any]:
    """The norm (None for none) and the activation of a kind of block, unless given."""
    if norm_layer is None and block == "free":
        norm_layer = nn.BatchNorm2d
    if act_layer is None:
        act_layer = nn.ReLU if block == "free" else GroupSort
    return layer_of("norm_layer", norm_layer), layer_of("act_layer", act_layer)


COMMON = {
    "first_conv": None,  # timm would adapt it to other channels, and it would be orthogonal no more
    "classifier": "head.fc",
    "paper_ids": "arXiv:2203.05483",
    "paper_name": "projUNN: efficient method for training deep networks with unitary matrices",
}

default_cfgs = generate_default_cfgs(
    {"orthoresnet_projunn.untrained": {**images_of("cifar10", reduction=8), "fixed_input_size": True, **COMMON}}
    | trained("orthoplain100_projunn", ["digits"], reduction=4, **COMMON)
)


def _create(name: str, pretrained: bool, **options: Any) -> OrthoResNet:
    features = {"out_indices": tuple(range(len(options["depths"]))), "flatten_sequential": True}
    options |= {"feature_cfg": features, "pretrained_filter_fn": with_own_stem}
    return build_model_with_cfg(OrthoResNet, name, pretrained, **options)


@register_model
def orthoresnet_projunn(pretrained: bool = False, **options: Any) -> OrthoResNet:
    """The ResNet-9 of projUNN's experiments on CIFAR-10, with full support at 32 x 32."""
    layout = {"depths": (1, 0, 1), "widths": (128, 256, 512), "stem_width": 64}
    return _create("orthoresnet_projunn", pretrained, **(layout | options))


@register_model
def orthoplain100_projunn(pretrained: bool = False, **options: Any) -> OrthoResNet:
    """A hundred convolutions in a row, without skips and norms: an isometry from the image to the features."""
    layout = {"depths": (33, 32, 32), "widths": (8, 32, 128), "stem_width": 8, "block": "isometry", "support": "local"}
    start = {"init": "identity", "global_pool": "max"}
    return _create("orthoplain100_projunn", pretrained, **(layout | start | options))
