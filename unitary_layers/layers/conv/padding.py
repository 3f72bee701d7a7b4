"""Which paddings an orthogonal convolution takes: what is periodic, and leaves the image its size."""

from ..base.inputs import Sides
from .full import FullSupport
from .local import LocalSupport


def check_padding(
    padding: str | Sides, padding_mode: str, support: FullSupport | LocalSupport, stride: tuple[int, ...]
) -> None:
    """Refuses what is not periodic with outputs over the whole input.

    Args:
        padding: "same", or as many pixels as torch's convolution has outputs of that size with.
        padding_mode: "circular".
        support: of the convolution.
        stride: of each side.

    Raises:
        ValueError: for another padding or mode.
    """
    same: list[object] = ["same"]
    if isinstance(support, LocalSupport):
        before, after = support.padding()
        # Of as many pixels behind as before, torch's output has the same size, but for an even kernel's n - 1.
        if all(b == a or s > 1 for b, a, s in zip(before, after, stride, strict=True)):
            same += [tuple(before), *([before[0]] if len(set(before)) == 1 else [])]
    given = tuple(padding) if isinstance(padding, list) else padding
    if given not in same:
        raise ValueError(
            f"expected padding to be one of {same}, got {padding!r}; this convolution pads periodically and keeps the "
            "size of the image; leave it out"
        )
    if padding_mode != "circular":
        raise ValueError(f"expected padding_mode='circular', which keeps norms, got {padding_mode!r}; leave it out")
