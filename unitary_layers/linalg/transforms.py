"""Whether a transform of torch looks on, for which a layer or a function is its plain formula."""

import torch
from torch import Tensor

# Note [Under a transform]
# torch.export and torch.jit.trace record the operations of a layer; torch.func differentiates and batches them. None of
# them knows what a node of our own does in backward. So under them a layer is the formula in its docstring: a
# recurrence is a loop, a Fourier transform is torch's own, a weight is a tensor like any other with a dense gradient,
# "factored" or not, and nobody watches it. torch.compile knows such nodes and keeps them. A loop has a fixed number of
# steps: where an export is to take sequences of any length, a recurrence is an operator of this package instead.
# Nor can a number be read under them to choose between formulas: functions take the one that always holds, and what is
# not finite comes out as NaN or as an error of torch.


def is_open(size: int) -> bool:
    """Whether an export is to take any size in the place of this one."""
    if not torch.compiler.is_exporting():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # with sympy, which an export has loaded

    return not has_static_value(size)


def unwrapped(x: Tensor) -> Tensor:
    """The tensor behind the wrappers of torch.func: of ``vmap`` with all its entries."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def is_transformed() -> bool:
    """Whether torch.export, torch.jit.trace or a transform of torch.func looks on; see Note [Under a transform]."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()


def is_readable(x: Tensor) -> bool:
    """Whether numbers can be read here, to refuse some; see Note [Under a transform]."""
    return not (x.is_meta or torch.compiler.is_compiling() or is_transformed())
