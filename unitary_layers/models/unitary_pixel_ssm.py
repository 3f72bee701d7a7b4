"""UnitaryPixelSSM: images read pixel by pixel by unitary state space layers, and its entry point in timm."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.fx import Proxy

from ..layers import UnitarySSM
from ..layers.base.inputs import as_size
from ..layers.base.symbolic import has_hooks
from ..projunn import UpdateRule
from .arguments import rule_of
from .pretrained import trained
from .protocol import StagedClassifier
from .unitary_pixel import PIXELS, LastState, StateHead

__all__ = ["UnitaryPixelSSM"]  # register_model adds the entry point

# Note [Blocks of pixels]
# A layer that puts out a state at every fourth step only makes a quarter of the work for all that follow, and loses
# nothing of its input: the state has read every pixel. So that what it puts out is again a map, the image is read in
# blocks of 2 x 2 pixels, in reading order, pixel by pixel inside a block, and a block puts out one state.


class GatedUnit(nn.Module):
    """``norm(x + a * sigmoid(g))``, a and g linear in the activated ``norm(x)`` (a gated linear unit), norms of layers.

    Source: Y. N. Dauphin, A. Fan, M. Auli, D. Grangier, arXiv 1612.08083; after a linear recurrence: A. Orvieto et al.,
    arXiv 2303.06349.
    """

    def __init__(self, features: int, **dd: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features, **dd)
        self.fc = nn.Linear(features, 2 * features, **dd)
        self.norm_out = nn.LayerNorm(features, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_out(x + F.glu(self.fc(F.gelu(self.norm(x)))))


@register_notrace_module
class StateSpaceLayer(nn.Module):
    """A unitary state space layer over the pixels of a map, then a gated unit; see Note [Blocks of pixels].

    Args:
        in_channels: of the map.
        out_channels: states, and channels of what is put out. Where they are as many as
            ``in_channels``, the recurrence has a residual connection.
        block_size: side of the blocks.
        options: of :class:`UnitarySSM`.

    Shape:
        ``(b, in_channels, h, w)`` to ``(b, out_channels, h / block_size, w / block_size)``.
    """

    def __init__(self, in_channels: int, out_channels: int, block_size: int = 1, **options: Any) -> None:
        super().__init__()
        dd = {name: options.get(name) for name in ("device", "dtype")}
        self.block_size, self.is_residual = block_size, in_channels == out_channels
        options |= {"batch_first": True, "skip": False, "stride": block_size**2}
        self.ssm = UnitarySSM(in_channels, out_channels, **options)
        self.gated = GatedUnit(out_channels, **dd)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        states = self._looped(x) if torch.jit.is_scripting() else self._scanned(x)
        return states.transpose(1, 2).unflatten(2, (x.size(2) // self.block_size, x.size(3) // self.block_size))

    @torch.jit.ignore
    def last(self, x: Tensor) -> Tensor:
        """The output after the last block alone, ``(b, out_channels, 1, 1)``."""
        return self._scanned(x, last=True)[:, :, None, None]

    @torch.jit.ignore
    def _scanned(self, x: Tensor, last: bool = False) -> Tensor:
        side = self.block_size
        if not isinstance(x, Proxy) and (x.size(2) % side or x.size(3) % side):
            raise ValueError(f"expected sides in multiples of {side}, got {tuple(x.shape[2:])}")
        sequence = self._sequence(x)
        return checkpoint(self._outputs, sequence, last) if self.grad_checkpointing else self._outputs(sequence, last)

    @torch.jit.ignore
    def _outputs(self, x: Tensor, last: bool) -> Tensor:
        """Of a sequence ``(b, t, in_channels)``: all ``(b, t / block_size^2, out_channels)``, or the last."""
        y = self.ssm.last(x)[0] if last else self.ssm(x)[0]
        return self._gated(y, x[:, -1] if last else x[:, self.ssm.stride - 1 :: self.ssm.stride])

    def _gated(self, y: Tensor, x: Tensor) -> Tensor:
        return self.gated(y + x if self.is_residual else y)

    def _sequence(self, x: Tensor) -> Tensor:
        """The pixels block by block, ``(b, h w, in_channels)``."""
        side = self.block_size
        x = x.unflatten(3, (x.size(3) // side, side)).unflatten(2, (x.size(2) // side, side))
        return x.permute(0, 2, 4, 3, 5, 1).flatten(1, 4)

    def _looped(self, x: Tensor) -> Tensor:
        """The outputs by a loop, for TorchScript."""
        ssm, x = self.ssm, self._sequence(x)
        re, im = ssm.basis_l0[..., 0], ssm.basis_l0[..., 1]
        theta, log_gamma = ssm.log_phase_l0.exp(), torch.zeros_like(ssm.log_phase_l0)
        driven, log_decay = F.linear(x, ssm.weight_ih_l0), ssm.log_decay_l0
        v_re, v_im = driven @ re, -driven @ im
        if log_decay is not None:
            log_gamma = -log_decay.exp()
            norm = (-torch.expm1(2 * log_gamma)).sqrt()
            v_re, v_im = norm * v_re, norm * v_im
        cosine, sine = log_gamma.exp() * theta.cos(), log_gamma.exp() * theta.sin()
        h_re, h_im = torch.zeros_like(v_re[:, 0]), torch.zeros_like(v_re[:, 0])
        outputs: list[Tensor] = []
        for t in range(x.size(1)):
            h_re, h_im = cosine * h_re - sine * h_im + v_re[:, t], sine * h_re + cosine * h_im + v_im[:, t]
            if (t + 1) % ssm.stride == 0:
                outputs.append(F.linear(h_re, re, ssm.bias_l0) - F.linear(h_im, im))
        return self._gated(torch.stack(outputs, 1), x[:, ssm.stride - 1 :: ssm.stride])


class UnitaryPixelSSM(StagedClassifier):
    """Unitary state space layers with gated units over the pixels of an image, and a read-out of the last output.

    Args:
        widths: states of each layer.
        embed_dim: channels of the embedding of a pixel.
        block_sizes: sides of the blocks of pixels for which each layer puts out one state.
        decay: whether states fade; of :class:`UnitarySSM`.
        update: the rule by which the unitary weights move, a dict of its options, or its variant, "D" or "T".
        init: start of the unitary weights.
        in_chans: channels of the image.
        num_classes: classes; 0 for no classifier.
        global_pool: "last" (output), a pooling of timm's over all outputs, or "" for none.
        drop_rate: dropout before the classifier.
        device: of the parameters.
        dtype: real floating point type.

    Shape:
        Input ``(b, in_chans, h, w)``, output ``(b, num_classes)``.

    Raises:
        TypeError, ValueError: for widths that are none, sizes that are not integers of at least 1, or another number of
            block sizes; in ``forward`` for an image that is not made of whole blocks.

    Example:
        >>> UnitaryPixelSSM((16, 16))(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    head_layer = StateHead
    poolings = ("last",)

    def __init__(
        self,
        widths: Sequence[int] = (96, 96),
        embed_dim: int = 1,
        block_sizes: Sequence[int] = (2, 1),
        *,
        decay: bool = True,
        update: UpdateRule | Mapping[str, Any] | str = "T",
        init: str | Callable[..., Tensor] = "haar",
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
        if not isinstance(block_sizes, (tuple, list)) or len(block_sizes) != len(widths):
            raise ValueError(f"expected {len(widths)} block_sizes, as many as widths, got {block_sizes!r}")
        embed_dim = as_size("embed_dim", embed_dim)
        self.stem = nn.Conv2d(as_size("in_chans", in_chans), embed_dim, 1, bias=False, **dd)
        nn.init.dirac_(self.stem.weight)  # one number a pixel: a random factor may be as good as zero
        options = {"decay": decay, "update": rule_of(update), "init": init, **dd}
        sides = [as_size("block_sizes", side) for side in block_sizes]
        triples = zip((embed_dim, *widths), widths, sides, strict=False)
        self.stages = nn.Sequential(*(StateSpaceLayer(*triple, **options) for triple in triples))
        reductions = [1]
        for side in sides:
            reductions.append(reductions[-1] * side)
        self.finish(widths, reductions[1:], **dd)

    def forward(self, x: Tensor) -> Tensor:
        is_shorter = self.training and not torch.jit.is_scripting()
        return self.forward_head(self._read_features(x) if is_shorter else self.forward_features(x))

    @torch.jit.ignore
    def _read_features(self, x: Tensor) -> Tensor:
        """Those of the features that the head reads: where it takes the last output, no others are made."""
        last = self.stages[-1]
        pool = self.head.global_pool
        # Whoever has a hook there is to be called with all outputs.
        is_hooked = any(map(has_hooks, (self.stages, *last.modules(), self.head, pool)))
        if is_hooked or not isinstance(pool, LastState) or isinstance(x, Proxy):
            return self.forward_features(x)
        return last.last(self.stages[:-1](self.stem(x)))  # type: ignore[operator,no-any-return]


default_cfgs = generate_default_cfgs(
    trained(
        "unissm_pixel_projunn",
        ["mnist"],
        reduction=2,
        paper_ids="arXiv:2303.06349",
        paper_name="Resurrecting recurrent neural networks for long sequences",
        **PIXELS,
    )
)


@register_model
def unissm_pixel_projunn(pretrained: bool = False, **options: Any) -> UnitaryPixelSSM:
    """Two unitary state space layers of width 96 with gated units over 28 x 28 pixels."""
    features = {"out_indices": tuple(range(len(options.get("widths", (0, 0))))), "flatten_sequential": True}
    return build_model_with_cfg(UnitaryPixelSSM, "unissm_pixel_projunn", pretrained, feature_cfg=features, **options)
