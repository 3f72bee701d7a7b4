"""OrthoViT: vision transformers whose projections and rectangles are orthogonal, and their entry point in timm."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, resample_patch_embed, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import UnitaryLinear, UnitaryMultiheadAttention
from ..layers.base.inputs import as_sides, as_size
from ..projunn import UpdateRule
from .arguments import layer_of, rule_of
from .blocks import Stage
from .pretrained import trained
from .protocol import StagedClassifier

__all__ = ["OrthoViT"]  # register_model adds the entry point


class PatchEmbedding(nn.Module):
    """A linear map of each patch of an image, and a learnt vector for its place.

    An image whose sides are no multiples of the patch is padded with zeros at the right and at the bottom. The vectors
    of the places are interpolated where the image has another number of patches than they were made for.

    Args:
        in_channels: of the image.
        features: of a patch.
        patch_size: side of a patch, in pixels.
        grid: patches of a column and of a row.

    Shape:
        ``(b, in_channels, h, w)`` to ``(b, features, h / patch_size, w / patch_size)``, rounded up.
    """

    def __init__(self, in_channels: int, features: int, patch_size: int, grid: tuple[int, int], **dd: Any) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, features, patch_size, patch_size, **dd)
        self.pos_embed = nn.Parameter(torch.empty(1, features, *grid, **dd))
        trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(F.pad(x, (0, -x.size(3) % self.patch_size, 0, -x.size(2) % self.patch_size)))
        return x + F.interpolate(self.pos_embed, size=(x.size(2), x.size(3)), mode="bicubic")


class TransformerBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``, over the positions of a map (norms of layers).

    Args:
        features: channels of the map.
        heads: of the attention.
        hidden: features inside the multi-layer perceptron, a linear layer on each side of a GELU.
        attention_layer: takes the arguments of :class:`UnitaryMultiheadAttention`.
        linear_layer: takes the arguments of :class:`UnitaryLinear`.
        score: of the attention.
        dd: device and dtype of the norms.
        options: of both layers.

    Shape:
        ``(b, features, h, w)``, in and out.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        hidden: int,
        attention_layer: Callable[..., nn.Module],
        linear_layer: Callable[..., nn.Module],
        score: str,
        dd: dict[str, Any],
        **options: Any,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(features, **dd)
        self.attn = attention_layer(features, heads, bias=False, batch_first=True, score=score, **dd, **options)
        self.norm2 = nn.LayerNorm(features, **dd)
        widen, narrow = linear_layer(features, hidden, **dd, **options), linear_layer(hidden, features, **dd, **options)
        self.mlp = nn.Sequential(widen, nn.GELU(), narrow)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        normed = self.norm1(tokens)
        # Without weights. All arguments are named: TorchScript knows no defaults of what it leaves to Python.
        tokens = tokens + self.attn(normed, normed, normed, None, False, None, True, False)[0]
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.transpose(1, 2).unflatten(2, (x.size(2), x.size(3)))


class OrthoViT(StagedClassifier):
    """A vision transformer with orthogonal projections, and without a norm of queries and keys.

    Patches, stages of pre-norm blocks, a norm, and a head on the mean of all positions. The projections of queries,
    keys, values and outputs are orthogonal matrices without biases. So a logit of attention is at most the product of
    the lengths of its two vectors, divided by the root of the features of a head; see
    :class:`UnitaryMultiheadAttention`. The matrices of the perceptrons have orthonormal columns and rows. Stages differ
    only in that timm takes their outputs for features.

    Source: A. Dosovitskiy et al., arXiv 2010.11929; with orthogonal attention E. A. Cherrat et al., arXiv 2209.08167.

    Args:
        depths: blocks of each stage.
        embed_dim: features of a position.
        num_heads: heads of each attention, a divisor of ``embed_dim``.
        patch_size: side of a patch, in pixels.
        mlp_ratio: how many times wider the perceptrons are inside.
        attention_layer: another layer in the place of :class:`UnitaryMultiheadAttention`, to compare with, or its name.
        linear_layer: another layer in the place of :class:`UnitaryLinear`, to compare with, or its name.
        score: of the attention, "softmax" or "born"; see :class:`UnitaryMultiheadAttention`.
        update: the rule by which the orthogonal weights move, a dict of its options, or its variant, "D" or "T".
        init: start of the orthogonal weights.
        img_size: height and width for whose patches the places are learnt; other images interpolate them.
        in_chans: channels of the image.
        num_classes: classes; 0 for no classifier.
        global_pool: a pooling of timm's over all positions, or "" for none.
        drop_rate: dropout before the classifier.
        device: of the parameters.
        dtype: real floating point type.

    Shape:
        Input ``(b, in_chans, h, w)``, output ``(b, num_classes)``.

    Raises:
        TypeError, ValueError: for sizes that are not integers of at least 1, no stages, or options out of range.

    Example:
        >>> OrthoViT((1, 1), embed_dim=16)(torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 2),
        embed_dim: int = 128,
        num_heads: int = 4,
        patch_size: int = 4,
        mlp_ratio: int = 4,
        *,
        attention_layer: str | Callable[..., nn.Module] = UnitaryMultiheadAttention,
        linear_layer: str | Callable[..., nn.Module] = UnitaryLinear,
        score: str = "softmax",
        update: UpdateRule | Mapping[str, Any] | str = "T",
        init: str | Callable[..., Tensor] = "haar",
        img_size: int | Sequence[int] = 28,
        in_chans: int = 1,
        num_classes: int = 10,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        arguments = dict(locals())
        super().__init__()
        dd = self.begin(arguments)
        if not isinstance(depths, (tuple, list)) or not depths:
            raise ValueError(f"expected depths of one or more stages, got {depths!r}")
        embed_dim, patch_size = as_size("embed_dim", embed_dim), as_size("patch_size", patch_size)
        height, width = as_sides("img_size", img_size, 2)
        grid = -(-height // patch_size), -(-width // patch_size)
        self.stem = PatchEmbedding(as_size("in_chans", in_chans), embed_dim, patch_size, grid, **dd)
        attention = layer_of("attention_layer", attention_layer) or UnitaryMultiheadAttention
        linear = layer_of("linear_layer", linear_layer) or UnitaryLinear
        sizes = (embed_dim, num_heads, as_size("mlp_ratio", mlp_ratio) * embed_dim)
        options: dict[str, Any] = {"update": rule_of(update), "init": init}
        stages: list[list[nn.Module]] = [
            [TransformerBlock(*sizes, attention, linear, score, dd, **options) for _ in range(depth)]
            for depth in depths
        ]
        stages[-1].append(LayerNorm2d(embed_dim, **dd))  # type: ignore[no-untyped-call]  # timm's has no annotations
        self.stages = nn.Sequential(*(Stage(nn.Identity(), blocks) for blocks in stages))
        self.finish((embed_dim,) * len(depths), (patch_size,) * len(depths), **dd)


default_cfgs = generate_default_cfgs(
    trained(
        "orthovit_tiny_projunn",
        ("fashion",),
        reduction=4,
        first_conv="stem.proj",
        classifier="head.fc",
        paper_ids="arXiv:2209.08167",
        paper_name="Quantum vision transformers",
    )
)


def with_own_patches(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Trained weights for a model of other patches: places interpolated, kernels resampled as timm does it."""
    stem = cast(PatchEmbedding, model.get_submodule("stem"))
    places, kernel = state_dict["stem.pos_embed"], state_dict["stem.proj.weight"]
    if places.shape[2:] != stem.pos_embed.shape[2:]:
        places = F.interpolate(places.float(), size=stem.pos_embed.shape[2:], mode="bicubic")
    if kernel.size(2) != stem.patch_size:
        kernel = resample_patch_embed(kernel.float(), [stem.patch_size, stem.patch_size])
    return state_dict | {"stem.pos_embed": places, "stem.proj.weight": kernel}


@register_model
def orthovit_tiny_projunn(pretrained: bool = False, **options: Any) -> OrthoViT:
    """Six blocks of width 128 with four heads over 7 x 7 patches of 28 x 28 pixels."""
    features = {"out_indices": tuple(range(len(options.get("depths", (0, 0, 0))))), "flatten_sequential": True}
    options |= {"feature_cfg": features, "pretrained_filter_fn": with_own_patches}
    return build_model_with_cfg(OrthoViT, "orthovit_tiny_projunn", pretrained, **options)
