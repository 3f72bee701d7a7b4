"""A certified network without kernels: orthogonal matrices over the channels of a pixel, and shifts of channels.

Source: K. Hu, H. Hu, M. Fredrikson, "LipNeXt: scaling up Lipschitz-based certified robustness to billion-parameter
models", arXiv 2601.18513: shifts, absolute values and orthogonal matrices.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from unitary_layers import OrthogonalConv2d, UpdateRule
from unitary_layers.robust import AbsActivation, NormPool, SpatialShift, UnitNormLinear


class ShiftNetwork(nn.Module):
    """From images in [0, 1] to logits in units of distance: 1-Lipschitz up to the head, whose rows have norm one.

    The pixels of a patch become channels; then stages of blocks `matrix, shift, activation`, each stage at half the
    resolution of the one before. Apart from the activation and the pooling all of it keeps distances as long as no
    stage has fewer numbers than the one before.

    Args:
        num_classes: of the head.
        size: channels, height and width of the images.
        patch: pixels of a side that become channels.
        widths: channels of each stage.
        depths: blocks of each stage, after the matrix that opens it.
        pool: "norm" over the positions, or "flat" for a head that sees each of them.
        init: start of the matrices.
        update: the rule by which they move.

    Attributes:
        lipschitz: of what comes before the head.
    """

    lipschitz = 1.0

    def __init__(
        self,
        num_classes: int,
        size: tuple[int, int, int],
        patch: int = 4,
        widths: Sequence[int] = (128, 256),
        depths: Sequence[int] = (3, 4),
        pool: str = "flat",
        init: str = "haar",
        update: UpdateRule = UpdateRule(),  # noqa: B008 (a frozen value)
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        channels, height, width = size
        of_matrices = {"init": init, "update": update}
        parts: list[nn.Module] = []
        for i, (features, depth) in enumerate(zip(widths, depths, strict=True)):
            side = patch if i == 0 else 2
            matrix = OrthogonalConv2d(channels * side**2, features, 1, **of_matrices)
            parts += [nn.PixelUnshuffle(side), matrix, AbsActivation(0.5)]
            for _ in range(depth):
                parts += [OrthogonalConv2d(features, features, 1, **of_matrices), SpatialShift(), AbsActivation(0.5)]
            channels, height, width = features, height // side, width // side
        self.features = nn.Sequential(*parts, NormPool() if pool == "norm" else nn.Flatten())
        self.head = UnitNormLinear(channels * (1 if pool == "norm" else height * width), num_classes)

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x - 0.5))
