"""Which paddings an orthogonal convolution takes: what leaves the image its size."""

from ..base.inputs import Sides, as_sides
from .full import FullSupport
from .local import LocalSupport


def as_padding_mode(padding_mode: str, *, is_local: bool) -> str:
    """The mode as it was given; full support knows only the periodic one.

    Raises:
        ValueError: for another one.
    """
    if padding_mode == "circular" or (padding_mode == "zeros" and is_local):
        return padding_mode
    if padding_mode == "zeros":
        raise ValueError(
            "expected padding_mode='circular' with kernel_size=None, where the kernel is as large as the image, got "
            "'zeros'; leave it out"
        )
    raise ValueError(
        f"expected padding_mode='circular', which keeps norms, or 'zeros', which enlarges none, got {padding_mode!r}; "
        "leave it out"
    )


def check_padding(padding: str | Sides, support: FullSupport | LocalSupport, stride: tuple[int, ...]) -> None:
    """Refuses what has not an output for each stride of the input.

    Args:
        padding: "same", or as many pixels as torch's convolution has outputs of that size with.
        support: of the convolution.
        stride: of each side.

    Raises:
        ValueError: for another padding.
    """
    same: list[object] = ["same"]
    if isinstance(support, LocalSupport):
        before, after = support.padding()
        # Of as many pixels behind as before, torch's output has the same size, but for an even kernel's n - 1.
        if all(b == a or s > 1 for b, a, s in zip(before, after, stride, strict=True)):
            same += _numbers(before)
    _refuse_others(padding, same)


def check_transposed_padding(
    padding: str | Sides,
    output_padding: Sides,
    support: FullSupport | LocalSupport,
    stride: tuple[int, ...],
) -> None:
    """Refuses what does not make outputs of the stride times the size, as of :func:`check_padding`."""
    more = as_sides("output_padding", output_padding, len(stride), least=0)
    same: list[object] = ["same"]
    if isinstance(support, LocalSupport):
        before, after = support.padding()
        needed = tuple(s - 1 - a + b for s, b, a in zip(stride, before, after, strict=True))
        if more == needed:
            same += _numbers(before)
        if any(more) and (more != needed or padding not in same):
            raise ValueError(
                f"expected output_padding={needed} with padding={tuple(before)}, got output_padding={output_padding!r} "
                f"with padding={padding!r}; leave them out"
            )
    elif any(more):
        raise ValueError(f"expected no output_padding with full support, got {output_padding!r}; leave it out")
    _refuse_others(padding, same)


def _numbers(before: list[int]) -> list[object]:
    """The ways to name as many pixels before each side."""
    return [tuple(before), *([before[0]] if len(set(before)) == 1 else [])]


def _refuse_others(padding: object, same: list[object]) -> None:
    given = tuple(padding) if isinstance(padding, list) else padding
    if given not in same:
        raise ValueError(
            f"expected padding to be one of {same}, got {padding!r}; this convolution keeps the size of the image; "
            "leave it out"
        )
