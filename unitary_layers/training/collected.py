"""The factored gradient of a weight: a tensor in the place of ``.grad`` that keeps factors and stands for a matrix."""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..linalg import LowRank
from .content import Content

# Note [A factored gradient is in .grad]
# Whatever speaks of gradients speaks of ``.grad``: zero_grad of any module or optimiser, ``p.grad = None``, clipping,
# a GradScaler, a mean over machines. So what backward has collected is there, as a tensor of the weight's shape without
# memory of that size (torch calls it a wrapper subclass). There is no second place that would have to be kept in step:
# a tensor that is taken away is forgotten. To zero it, to scale it and to take its norm are operations on the factors.
# Whatever else reads it reads the matrix, formed for the moment, and what else writes it, as a penalty on the weight
# or a tied layer does in backward, leaves a matrix there, as if the layer were dense. So does whatever takes a view of
# it, a row, since it may be written. Where there is a matrix in .grad already, backward adds to that.
# The norm is that of the sample, which is at most that of the gradient, and equal to it at full rank; of a wider dtype,
# where one is asked for, as of a matrix.


class FactoredGrad(Tensor):
    """A gradient by its factors, in the place of ``.grad``; see Note [A factored gradient is in .grad].

    Attributes:
        content: what is kept of it; shared by the tensors that torch takes for views of one another.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # below autograd alone
    content: Content

    @staticmethod
    def __new__(cls, like: Tensor, content: Content) -> "FactoredGrad":
        form: dict[str, Any] = {"strides": like.stride(), "dtype": like.dtype, "device": like.device}
        self: FactoredGrad = Tensor._make_wrapper_subclass(cls, like.shape, **form)  # type: ignore[attr-defined]
        self.content = content
        return self

    def dense(self) -> Tensor:
        """The matrix, stored as the weight is."""
        matrix = self.content.matrix()
        if matrix is None:
            return torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        return (torch.view_as_real(matrix) if matrix.is_complex() else matrix).to(self.dtype)

    def write(self, stored: Tensor) -> None:
        """Becomes a matrix that is stored as the weight is."""
        stored = stored.contiguous()
        self.content.write(torch.view_as_complex(stored) if self.content.is_complex else stored)

    def __repr__(self) -> str:  # type: ignore[override]  # of options
        kept = self.content.low_rank
        return f"FactoredGrad({tuple(self.shape)}, rank={'full' if kept is None else kept.rank})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.dense()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.dense().__reduce_ex__(protocol)

    def share_memory_(self) -> "FactoredGrad":
        """Moves the factors to shared memory."""
        self.content.moved(Tensor.share_memory_)
        return self

    def untyped_storage(self) -> torch.UntypedStorage:
        """One without memory: who reads it is refused by torch, and compilers and exports ask for its size alone."""
        return torch.UntypedStorage(self.numel() * self.element_size(), device="meta")

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub forgets func
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What torch does with it: on the factors where that is known, else on the matrix."""
        result = _on_factors(func, args, kwargs or {})
        return _on_matrices(func, args, kwargs or {}) if result is NotImplemented else result


aten = torch.ops.aten


def _norm(x: Tensor, order: float = 2, dtype: torch.dtype | None = None) -> Tensor:
    """One of the norms of a list, by torch's function for one tensor, whose arguments have another order."""
    return aten.linalg_vector_norm.default(x, order, dtype=dtype)  # type: ignore[no-any-return]  # of any operation


ONE_BY_ONE: dict[Any, Any] = {  # operations on lists of tensors that are worth to be done for each, by what does it
    aten._foreach_zero_.default: aten.zero_.default,
    aten._foreach_mul_.Tensor: aten.mul_.Tensor,
    aten._foreach_mul_.Scalar: aten.mul_.Tensor,
    aten._foreach_norm.Scalar: _norm,
}


def _on_factors(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result of an operation that needs no matrix; ``NotImplemented`` for all others."""
    if func is aten._amp_foreach_non_finite_check_and_unscale_.default:
        return _unscale(*args)
    if func in ONE_BY_ONE:
        torch.autograd.graph.increment_version(args[0] if func._schema.is_mutable else ())
        results = [ONE_BY_ONE[func](x, *args[1:], **kwargs) for x in args[0]]
        return None if func._schema.is_mutable else results
    own = args[0] if args else None
    if not isinstance(own, FactoredGrad):
        return NotImplemented
    content = own.content
    if func is aten.detach.default:
        return FactoredGrad(own, content)
    if func is aten.zero_.default:
        content.clear()
        return own
    if func in (aten.mul_.Tensor, aten.div_.Tensor) and _is_scalar(args[1]):
        content.scale_(args[1] if func is aten.mul_.Tensor else 1 / args[1])
        return own
    if func is aten.linalg_vector_norm.default and (len(args) == 1 or (len(args) == 2 and args[1] == 2)):
        dtype = kwargs.get("dtype") or own.dtype
        is_wider = dtype == torch.promote_types(dtype, own.dtype) and not dtype.is_complex  # torch refuses others
        norm = content.norm(dtype) if is_wider else None
        return NotImplemented if norm is None else norm
    return NotImplemented


def _is_scalar(x: Any) -> bool:
    return not isinstance(x, Tensor) or x.ndim == 0


def _unscale(gradients: list[Tensor], found_inf: Tensor, inverse: Tensor) -> None:
    """What a GradScaler does to gradients: divides by its scale, and notes what is not finite."""
    others = [gradient for gradient in gradients if not isinstance(gradient, FactoredGrad)]
    if others:
        aten._amp_foreach_non_finite_check_and_unscale_(others, found_inf, inverse)
    for gradient in gradients:
        if isinstance(gradient, FactoredGrad):
            content = gradient.content
            if not content.is_finite():
                found_inf.fill_(1)
            content.unscale_(inverse)


def _on_matrices(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Any other operation, on the matrices; what it writes becomes a matrix."""
    matrices: dict[int, tuple[FactoredGrad, Tensor]] = {}

    def matrix(x: Any) -> Any:
        if not isinstance(x, FactoredGrad):
            return x
        return matrices.setdefault(id(x.content), (x, x.dense()))[1]

    if func.is_view:  # what is written to a view shall be found here
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, FactoredGrad):
                x.write(x.dense())
    written = [x for x in tree_leaves(list(_written(func, args, kwargs))) if isinstance(x, Tensor)]
    own = [x for x in written if isinstance(x, FactoredGrad)]
    result = func(*tree_map(matrix, args), **tree_map(matrix, dict(kwargs)))
    for x in own:
        x.write(matrix(x))
    torch.autograd.graph.increment_version(written)  # torch forgets it where a list of tensors comes here
    shown = {id(dense): x for x, dense in matrices.values()}
    return tree_map(lambda x: shown.get(id(x), x), result)


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """The arguments that an operation writes."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[i] if i < len(args) else kwargs.get(argument.name)


class Collected:
    """The factored gradient of one weight, wherever ``.grad`` holds it; what it has not, is None.

    Args:
        parameter: the weight as it is stored.
    """

    def __init__(self, parameter: Tensor) -> None:
        self._parameter = weakref.ref(parameter)

    @property
    def content(self) -> Content | None:
        """What is kept of the gradient; None where there is none, or one that is a matrix from the start."""
        parameter = self._parameter()
        gradient = parameter.grad if parameter is not None and parameter.is_leaf else None
        return gradient.content if isinstance(gradient, FactoredGrad) else None

    def put(self, content: Content) -> None:
        """Puts a gradient in the place of whatever is there."""
        parameter = self._parameter()
        assert parameter is not None  # whoever asks has it
        parameter.grad = FactoredGrad(parameter, content)

    def drop(self) -> None:
        """Forgets a factored gradient, and leaves a matrix alone."""
        parameter = self._parameter()
        if parameter is not None and self.content is not None:
            parameter.grad = None

    @property
    def low_rank(self) -> LowRank | None:
        """The sum of its samples."""
        return None if (content := self.content) is None else content.low_rank
