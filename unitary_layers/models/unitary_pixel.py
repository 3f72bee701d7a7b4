"""UnitaryPixelRNN: images read pixel by pixel by unitary recurrent layers, and its entry point in timm."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import ClassifierHead, register_notrace_module
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import UnitaryRNN
from ..layers.base.inputs import as_size
from ..projunn import UpdateRule
from .arguments import rule_of
from .pretrained import trained
from .protocol import StagedClassifier

__all__ = ["UnitaryPixelRNN"]  # register_model adds the entry point


@register_notrace_module
class PixelLayer(nn.Module):
    """A recurrent layer over the pixels of a map in reading order; its states are a map again.

    Args:
        in_channels: of the map.
        out_channels: hidden units.
        options: of :class:`UnitaryRNN`.

    Shape:
        ``(b, in_channels, h, w)`` to ``(b, out_channels, h, w)``.
    """

    def __init__(self, in_channels: int, out_channels: int, **options: Any) -> None:
        super().__init__()
        self.rnn = UnitaryRNN(in_channels, out_channels, **options)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        sequence = x.flatten(2).permute(2, 0, 1)  # (h w) b c; TorchScript does not know einops
        states = self._states(sequence) if torch.jit.is_scripting() else self._scanned(sequence)
        return states.permute(1, 2, 0).unflatten(2, (x.size(2), x.size(3)))

    @torch.jit.ignore
    def _scanned(self, sequence: Tensor) -> Tensor:
        return checkpoint(self.rnn, sequence)[0] if self.grad_checkpointing else self.rnn(sequence)[0]

    def _states(self, sequence: Tensor) -> Tensor:
        """The same by a loop, for TorchScript."""
        rnn = self.rnn
        projected = F.linear(sequence, rnn.weight_ih_l0, rnn.bias_ih_l0 + rnn.bias_hh_l0)
        h = torch.zeros_like(projected[0])
        states: list[Tensor] = []
        for t in range(projected.size(0)):
            h = rnn.activations[0](projected[t] + F.linear(h, rnn.weight_hh_l0))
            states.append(h)
        return torch.stack(states)


class LastState(nn.Module):
    """The state after the last pixel, as a pooling of timm's: ``(b, c, h, w)`` to ``(b, c)``."""

    pool_type = "last"

    def feat_mult(self) -> int:
        """How many numbers a channel becomes."""
        return 1

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, -1, -1]


class StateHead(ClassifierHead):
    """timm's head with one more way of pooling, "last"."""

    def __init__(self, in_features: int, num_classes: int, pool_type: str = "last", **options: Any) -> None:
        super().__init__(in_features, num_classes, "avg" if pool_type == "last" else pool_type, **options)
        self.global_pool = LastState() if pool_type == "last" else self.global_pool

    def reset(self, num_classes: int, pool_type: str | None = None, *args: Any, **options: Any) -> None:
        """A new classifier; ``pool_type`` None keeps the pooling."""
        super().reset(num_classes, "avg" if pool_type == "last" else pool_type, *args, **options)
        self.global_pool = LastState() if pool_type == "last" else self.global_pool


class UnitaryPixelRNN(StagedClassifier):
    """Unitary recurrent layers over the pixels of an image in reading order, and a linear read-out of the last state.

    Args:
        widths: hidden units of each layer.
        embed_dim: channels of the embedding of a pixel.
        patch_size: side of the square of pixels that is one time step.
        nonlinearity: of :class:`UnitaryRNN`.
        update: the rule by which the unitary weights move, a dict of its options, or its variant, "D" or "T".
        init: start of the unitary weights.
        gradient: "dense" or "factored".
        in_chans: channels of the image.
        num_classes: classes; 0 for no classifier.
        global_pool: "last" (state), a pooling of timm's over all states, or "" for none.
        drop_rate: dropout before the classifier.
        device: of the parameters.
        dtype: real floating point type.

    Shape:
        Input ``(b, in_chans, h, w)``, output ``(b, num_classes)``.

    Raises:
        TypeError, ValueError: for widths that are none, or sizes that are not integers of at least 1.

    Example:
        >>> UnitaryPixelRNN((16, 16))(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    head_layer = StateHead
    poolings = ("last",)

    def __init__(
        self,
        widths: Sequence[int] = (128, 128, 128),
        embed_dim: int = 32,
        patch_size: int = 1,
        *,
        nonlinearity: str | nn.Module = "modrelu",
        update: UpdateRule | Mapping[str, Any] | str = "T",
        init: str | Callable[..., Tensor] = "henaff",
        gradient: str = "dense",
        in_chans: int = 1,
        num_classes: int = 10,
        global_pool: str = "last",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        arguments = dict(locals())
        super().__init__()
        dd = self.begin(arguments)
        if not isinstance(widths, (tuple, list)) or not widths:
            raise ValueError(f"expected widths of one or more layers, got {widths!r}")
        embed_dim, patch_size = as_size("embed_dim", embed_dim), as_size("patch_size", patch_size)
        self.stem = nn.Conv2d(as_size("in_chans", in_chans), embed_dim, patch_size, patch_size, **dd)
        options = {"nonlinearity": nonlinearity, "update": rule_of(update), "gradient": gradient, "init": init, **dd}
        pairs = zip((embed_dim, *widths), widths, strict=False)
        self.stages = nn.Sequential(*(PixelLayer(before, width, **options) for before, width in pairs))
        self.finish(widths, [patch_size] * len(widths), **dd)


PIXELS = {"first_conv": "stem", "classifier": "head.fc"}  # of every model that reads pixel by pixel

default_cfgs = generate_default_cfgs(
    trained(
        "unirnn_pixel_projunn",
        ["digits"],
        reduction=1,
        paper_ids="arXiv:2203.05483",
        paper_name="projUNN: efficient method for training deep networks with unitary matrices",
        **PIXELS,
    )
)


@register_model
def unirnn_pixel_projunn(pretrained: bool = False, **options: Any) -> UnitaryPixelRNN:
    """Three unitary recurrent layers of width 128 over the pixels of an image."""
    features = {"out_indices": tuple(range(len(options.get("widths", (0, 0, 0))))), "flatten_sequential": True}
    return build_model_with_cfg(UnitaryPixelRNN, "unirnn_pixel_projunn", pretrained, feature_cfg=features, **options)
