"""A stem that whitens the patches of an image: their principal directions, each at the same strength."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Note [Whitening stem]
# The first layer of an image network learns little more than the statistics of pixels: edges and colours. These are
# known before the training: the eigenvectors of the second moments of the patches, each divided by the root of its
# eigenvalue, so that its answers have a mean square of 1 (Page, "How to train your ResNet", 2019; Jordan, arXiv
# 2404.00498, section 3.2). The eigenvectors are an orthonormal kernel. Both signs of an answer go on, because the
# nonlinearity behind them treats them differently. An eigenvalue that is close to zero would make noise of rounding, so
# `FLOOR` is added to all of them. What comes from images stays as it is: fitting freezes the kernel, and so does
# loading a stem that was fitted, which is one whose scales are not all 1.

FLOOR = 5e-4  # arXiv 2404.00498; of images standardised to a mean square of about 1


class WhiteningStem(nn.Module):
    """An orthonormal kernel of few taps, a scale for each of its outputs, both signs, a bias and an activation.

    Without data the kernel is one that is drawn and trained as those of the other layers are, and the scales are 1;
    :meth:`fit` takes both from images. See Note [Whitening stem].

    Args:
        in_channels: of the image.
        taps: of each side.
        conv_layer: makes the convolution; takes the arguments of ``nn.Conv2d``.
        act_layer: makes an activation.
        dd: device and dtype of the parameters.

    Shape:
        ``(b, in_channels, h, w)`` to ``(b, 2 in_channels taps^2, h, w)``.

    Attributes:
        scale: a buffer ``(in_channels taps^2,)``.
        bias: a parameter ``(2 in_channels taps^2,)``.
    """

    scale: Tensor

    def __init__(
        self,
        in_channels: int,
        taps: int,
        conv_layer: Callable[..., nn.Module],
        act_layer: Callable[[], nn.Module],
        **dd: Any,
    ) -> None:
        super().__init__()
        width = in_channels * taps**2
        self.taps, self.out_channels = taps, 2 * width
        self.conv = conv_layer(in_channels, width, taps, bias=False, **dd)
        self.register_buffer("scale", torch.ones(width, **dd))
        self.bias = nn.Parameter(torch.zeros(2 * width, **dd))
        self.act = act_layer()

    def forward(self, x: Tensor) -> Tensor:
        around = (self.taps - 1) // 2, self.taps // 2  # so that the image keeps its size
        x = self.conv(F.pad(x, around + around)) * self.scale[:, None, None]
        return self.act(torch.cat((x, -x), 1) + self.bias[:, None, None])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Freezes the kernel where a fitted one comes; see Note [Whitening stem]."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        scale = state_dict.get(f"{prefix}scale")
        if isinstance(scale, Tensor) and not scale.is_meta and bool((scale != 1).any()):
            self.conv.requires_grad_(False)

    @torch.jit.ignore
    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Takes kernel and scales from the patches of images ``(b, in_channels, h, w)``, and freezes the kernel.

        Raises:
            ValueError: for images of another shape, smaller than a patch, or not finite.
        """
        channels = len(self.scale) // self.taps**2
        if images.ndim != 4 or images.size(1) != channels or min(images.shape[2:]) < self.taps or not len(images):
            raise ValueError(
                f"expected images (b, {channels}, h, w) of sides of at least {self.taps}, got {tuple(images.shape)}"
            )
        if not torch.isfinite(images).all():
            raise ValueError("expected images of finite numbers, got some that are not")
        patches = F.unfold(images, self.taps).transpose(1, 2).flatten(0, 1)
        moments = patches.mT.double() @ patches.double() / len(patches)
        variances, directions = torch.linalg.eigh(moments)
        kernel = directions.mT.flip(0).reshape(-1, channels, self.taps, self.taps)  # the strongest first
        self.conv.load_state_dict({"weight": kernel.to(self.scale)}, strict=False)  # made orthonormal to rounding
        self.scale.copy_((variances.flip(0).clamp(min=0) + FLOOR).rsqrt())
        self.conv.requires_grad_(False)
