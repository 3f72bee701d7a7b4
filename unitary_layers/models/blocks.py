"""Blocks of the image models, each with the bound that it keeps.

isometry  ``act(conv(x))``                 keeps the norm of every signal and of every gradient
convex    ``a x + (1 - a) f(x)``           1-Lipschitz: a convex combination of two maps that are
free      ``x + f(x)``                     no bound; with a norm, as in a ResNet

f is a chain of orthogonal convolutions, each followed by an activation that keeps norms (free: by a norm and ReLU).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import checkpoint_seq
from torch import Tensor, nn

from ..layers import GroupSort, OrthogonalConv2d
from ..layers.base.inputs import as_size
from ..projunn import UpdateRule

ONE_LIPSCHITZ = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.Tanh, GroupSort)  # LeakyReLU up to a slope of one

Size = tuple[int, int] | None


@dataclass(frozen=True)
class UnitSpec:
    """What all the convolutions of a model share.

    Attributes:
        kernel_size: taps a side; None for full support, which fixes the size of the image.
        norm_layer: makes a norm from the number of channels; None for none.
        act_layer: makes an activation.
        update: how the orthogonal weights move.
        init: of the convolutions; None for their own default.
        bias: whether convolutions without a norm behind them have a bias.
        conv_layer: takes the arguments of :class:`OrthogonalConv2d`.
        gradient: "dense" or "factored", the latter for full support alone.
        device: of the parameters.
        dtype: of the parameters.
    """

    kernel_size: int | None
    norm_layer: Callable[..., nn.Module] | None
    act_layer: Callable[[], nn.Module]
    update: UpdateRule
    init: str | Callable[..., Tensor] | None = None
    bias: bool = True
    conv_layer: Callable[..., nn.Module] = OrthogonalConv2d
    gradient: str = "dense"
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.gradient == "factored" and self.kernel_size is not None:
            raise ValueError('expected support="full" with gradient="factored", got support="local"')

    @property
    def factory(self) -> dict[str, Any]:
        """Keywords that say where parameters are made."""
        return {"device": self.device, "dtype": self.dtype}

    @property
    def lipschitz(self) -> float:
        """Lipschitz constant of a unit where one is known (1), else infinity."""
        known = self.norm_layer is None and self.conv_layer is OrthogonalConv2d
        act = self.act_layer()
        known = known and type(act) in ONE_LIPSCHITZ  # a subclass may do anything
        steep = isinstance(act, nn.LeakyReLU) and not abs(act.negative_slope) <= 1
        return 1.0 if known and not steep else math.inf

    def conv(self, channels: tuple[int, int], size: Size, stride: int, kernel_size: int | None) -> nn.Module:
        """The convolution of one unit; a kernel size of one's own makes it local."""
        taps = self.kernel_size if kernel_size is None else kernel_size
        bias = self.bias and self.norm_layer is None
        options = {"update": self.update, "init": self.init, **self.factory}
        if taps is None:
            options |= {"input_size": size, "gradient": self.gradient}
        return self.conv_layer(*channels, taps, stride, bias=bias, padding_mode="circular", padding="same", **options)


# Note [No bias at depth]
# A bias adds to a signal whose norm the next layers keep, and so do the biases of a hundred layers: after one step of
# RMSprop, which moves each by ten times its rate, they outweigh the image (loss 11 to 18 after the first epoch).
# Without them, and starting at the identity, 100 layers learn digits to 91 % in 5 epochs (with them: 67 %).


class ConvUnit(nn.Module):
    """An orthogonal convolution, a norm where there is one, an activation.

    Args:
        spec: what the convolutions of the model share.
        in_channels: of the input.
        out_channels: of the output.
        size: height and width of the input, needed for full support.
        stride: of the convolution.
        kernel_size: taps, where they are not those of ``spec``.

    Shape:
        ``(b, in_channels, h, w)`` to ``(b, out_channels, h / stride, w / stride)``.
    """

    def __init__(
        self,
        spec: UnitSpec,
        in_channels: int,
        out_channels: int,
        size: Size = None,
        stride: int = 1,
        kernel_size: int | None = None,
    ) -> None:
        super().__init__()
        self.conv = spec.conv((in_channels, out_channels), size, stride, kernel_size)
        self.norm = nn.Identity() if spec.norm_layer is None else spec.norm_layer(out_channels, **spec.factory)
        self.act = spec.act_layer()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


def branch(spec: UnitSpec, channels: int, size: Size, bottleneck: int) -> nn.Sequential:
    """The f of a block: two units, or (bottleneck above 1) three through ``channels // bottleneck`` channels."""
    if bottleneck == 1:
        return nn.Sequential(*(ConvUnit(spec, channels, channels, size) for _ in range(2)))
    inner = channels // as_size("bottleneck", bottleneck)
    return nn.Sequential(
        ConvUnit(spec, channels, inner, size, kernel_size=1),
        ConvUnit(spec, inner, inner, size),
        ConvUnit(spec, inner, channels, size, kernel_size=1),
    )


class IsometryBlock(ConvUnit):
    """``act(conv(x))`` with as many channels after as before.

    With :class:`GroupSort` and no norm its Jacobian is orthogonal wherever it exists: gradients keep their norm through
    any depth, and so do signals, as there is no bias; see Note [No bias at depth].
    """

    def __init__(self, spec: UnitSpec, channels: int, size: Size = None, bottleneck: int = 1) -> None:
        if bottleneck != 1:
            raise ValueError(f"expected an isometry without a bottleneck, which loses channels, got {bottleneck}")
        super().__init__(spec, channels, channels, size)


class ConvexBlock(nn.Module):
    """``a x + (1 - a) f(x)`` with a learnt a in (0, 1), 1/2 at first: 1-Lipschitz where f is.

    Attributes:
        gate: a tensor ``()``; a is its logistic function.
    """

    def __init__(self, spec: UnitSpec, channels: int, size: Size = None, bottleneck: int = 1) -> None:
        super().__init__()
        self.branch = branch(spec, channels, size, bottleneck)
        self.gate = nn.Parameter(torch.zeros((), **spec.factory))

    def forward(self, x: Tensor) -> Tensor:
        a = torch.sigmoid(self.gate)
        return a * x + (1 - a) * self.branch(x)


class FreeBlock(nn.Module):
    """``x + f(x)``: the residual block of a ResNet, without a bound."""

    def __init__(self, spec: UnitSpec, channels: int, size: Size = None, bottleneck: int = 1) -> None:
        super().__init__()
        self.branch = branch(spec, channels, size, bottleneck)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


BLOCKS = {"isometry": IsometryBlock, "convex": ConvexBlock, "free": FreeBlock}


class Stage(nn.Module):
    """Blocks at one resolution, after the transition to it.

    Args:
        transition: halves the resolution and changes the channels, or the identity.
        blocks: all of one shape.
    """

    def __init__(self, transition: nn.Module, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.transition = transition
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)
