"""StiefelNet: a small image classifier of convolutions with orthonormal kernels, and its entry point in timm."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import OrthogonalConv2d, StiefelConv2d
from ..layers.base.inputs import as_size
from ..projunn import UpdateRule
from .arguments import layer_of, rule_of
from .blocks import Stage
from .pretrained import trained, with_own_stem
from .protocol import StagedClassifier
from .whitening import WhiteningStem

__all__ = ["StiefelNet"]  # register_model adds the entry point

# The layout is that of Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498, with other widths.


class PoolUnit(nn.Module):
    """A convolution, a pooling (or none), a norm, an activation.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        pool: side of the squares of pixels of which the largest number stays; 1 for none.
        conv_layer: makes a convolution; takes the arguments of ``nn.Conv2d``.
        norm_layer: makes a norm from the number of channels.
        act_layer: makes an activation.
        dd: device and dtype of the parameters.

    Shape:
        ``(b, in_channels, h, w)`` to ``(b, out_channels, h / pool, w / pool)``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        pool: int,
        conv_layer: Callable[..., nn.Module],
        norm_layer: Callable[..., nn.Module],
        act_layer: Callable[[], nn.Module],
        **dd: Any,
    ) -> None:
        super().__init__()
        self.conv = conv_layer(in_channels, out_channels, 3, padding=1, bias=False, **dd)
        self.pool = nn.Identity() if pool == 1 else nn.MaxPool2d(pool)
        self.norm = norm_layer(out_channels, **dd)
        self.act = act_layer()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.pool(self.conv(x))))


# Note [Contractions from orthogonal operators]
# A square orthogonal convolution turns all that comes in and leaves nothing out, and a network of such ones learns
# slowly. With more channels in between each operator keeps all its singular values 1, and yet their product is any
# contraction (P. Halmos, 1950). Of k x k taps an orthogonal kernel into k^2 times as many channels is k times an
# isometry: it turns the patches, of which each pixel has a part in k^2. The norm behind it takes the factor out. After
# the activation orthonormal rows lead back to fewer channels.


class OperatorUnit(nn.Module):
    """Two orthogonal operators, from the patches of 2 x 2 pixels and back, with what a unit has in between.

    ``norm(B act(norm(pool(A x))))``, to which x is added where it has that shape. A is an isometry into four times as
    many channels, up to a factor, and B has orthonormal rows, or columns where it leads to more; see Note [Contractions
    from orthogonal operators].

    Arguments and shapes are those of :class:`PoolUnit`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        pool: int,
        conv_layer: Callable[..., nn.Module],
        norm_layer: Callable[..., nn.Module],
        act_layer: Callable[[], nn.Module],
        **dd: Any,
    ) -> None:
        super().__init__()
        inner = 4 * in_channels
        around: dict[str, Any] = {"padding": "same", "padding_mode": "circular"}
        self.conv = conv_layer(in_channels, inner, 2, bias=False, **around, **dd)
        self.pool = nn.Identity() if pool == 1 else nn.MaxPool2d(pool)
        self.norm1 = norm_layer(inner, **dd)
        self.act = act_layer()
        self.back = conv_layer(inner, out_channels, 1, bias=False, **dd)
        self.norm2 = norm_layer(out_channels, **dd)
        self.is_residual = pool == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.back(self.act(self.norm1(self.pool(self.conv(x))))))
        return x + y if self.is_residual else y


class StiefelNet(StagedClassifier):
    """A whitening stem, groups of convolutions with orthonormal kernels, and a pooled linear head.

    A group is a convolution, a max-pooling that halves the resolution, a norm and an activation, then `depth` times a
    convolution, a norm and an activation.

    Args:
        depths: convolutions behind the first one of each group.
        widths: channels of each group.
        stem_taps: taps a side of the stem, which has ``2 in_chans stem_taps^2`` channels.
        norm_layer: class of a norm, or its name.
        act_layer: class of an activation, or its name.
        update: the rule by which the kernels move, a dict of its options, or its variant, "D" or "T".
        init: start of the kernels.
        conv_layer: class of the convolutions, or its name: :class:`StiefelConv2d`; :class:`OrthogonalConv2d` for
            operators that are orthogonal, not only their kernels, behind the same stem; ``nn.Conv2d`` to compare with.
        operators: in the place of each convolution behind the stem two whose operators are orthogonal, with four times
            as many channels in between, and skips; see Note [Contractions from orthogonal operators].
        in_chans: channels of the image.
        num_classes: classes; 0 for no classifier.
        global_pool: "max", "avg", "avgmax", "catavgmax", or "" for none.
        drop_rate: dropout before the classifier.
        device: of the parameters.
        dtype: real floating point type.

    Shape:
        Input ``(b, in_chans, h, w)``, output ``(b, num_classes)``.

    Raises:
        ValueError: for options that do not fit.

    Example:
        >>> model = StiefelNet((1, 1), (8, 16))
        >>> images = torch.randn(20, 3, 8, 8)
        >>> model.init_whitening(images)
        >>> model(images).shape
        torch.Size([20, 10])
    """

    def __init__(
        self,
        depths: Sequence[int] = (1, 1, 1),
        widths: Sequence[int] = (64, 128, 256),
        stem_taps: int = 2,
        *,
        norm_layer: str | Callable[..., nn.Module] = nn.BatchNorm2d,
        act_layer: str | Callable[..., nn.Module] = nn.GELU,
        update: UpdateRule | Mapping[str, Any] | str = "T",
        init: str | Callable[..., Tensor] = "haar",
        conv_layer: str | Callable[..., nn.Module] = StiefelConv2d,
        operators: bool = False,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = "max",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        arguments = dict(locals())
        super().__init__()
        dd = self.begin(arguments)
        if len(depths) != len(widths) or not len(widths):
            raise ValueError(f"expected as many depths as widths, got {tuple(depths)} and {tuple(widths)}")
        conv = layer_of("conv_layer", conv_layer) or StiefelConv2d
        rule = rule_of(update)
        stem_conv = StiefelConv2d if conv is OrthogonalConv2d else conv  # a kernel that fit() may write
        if conv is not nn.Conv2d:  # which has no such options
            conv, stem_conv = (partial(layer, update=rule, init=init) for layer in (conv, stem_conv))
        norm = layer_of("norm_layer", norm_layer) or nn.BatchNorm2d
        act = layer_of("act_layer", act_layer) or nn.GELU
        self.stem = WhiteningStem(as_size("in_chans", in_chans), as_size("stem_taps", stem_taps), stem_conv, act, **dd)
        layers = {"conv_layer": conv, "norm_layer": norm, "act_layer": act, **dd}
        unit: type[PoolUnit] | type[OperatorUnit] = OperatorUnit if operators else PoolUnit
        stages, before = [], self.stem.out_channels
        for depth, width in zip(depths, widths, strict=True):
            blocks: list[nn.Module] = [unit(width, width, 1, **layers) for _ in range(depth)]
            stages.append(Stage(unit(before, width, 2, **layers), blocks))
            before = width
        self.stages = nn.Sequential(*stages)
        self.finish(widths, [2 ** (i + 1) for i in range(len(widths))], **dd)

    @torch.jit.ignore
    def init_whitening(self, images: Tensor) -> None:
        """Takes the stem from images ``(b, in_chans, h, w)``, standardised as in training, and freezes its kernel.

        A few thousand images are enough: 5,000 of 32 x 32 pixels have 4.8 million patches of 2 x 2.

        Raises:
            ValueError: for images of another shape or not finite.
        """
        self.stem.fit(images)  # type: ignore[operator]  # a WhiteningStem


default_cfgs = generate_default_cfgs(
    trained(
        "stiefelnet_projunn",
        ["cifar10"],
        reduction=8,
        classifier="head.fc",
        paper_ids="arXiv:2203.05483",
        paper_name="projUNN: efficient method for training deep networks with unitary matrices",
    )
)


@register_model
def stiefelnet_projunn(pretrained: bool = False, **options: Any) -> StiefelNet:
    """Three groups of two convolutions with orthonormal kernels behind a whitening stem, for 32 x 32 pixels."""
    features = {"out_indices": tuple(range(len(options.get("widths", (0, 0, 0))))), "flatten_sequential": True}
    beside = "stages.0.transition" if options.get("operators") else "stages.0.transition.conv"
    own_stem = partial(with_own_stem, beside=(beside,))
    options |= {"feature_cfg": features, "pretrained_filter_fn": own_stem}
    return build_model_with_cfg(StiefelNet, "stiefelnet_projunn", pretrained, **options)
