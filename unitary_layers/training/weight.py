"""A unitary weight inside a module, and how it is found in a module tree."""

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from math import gcd
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed import ProcessGroup

from ..projunn.gradient import DenseGradient, GradientOperator
from ..projunn.rule import Fit, UpdateRule
from ..projunn.sampling import LowRankGradient
from .collected import Collected
from .memory import Memory


class Seen:
    """What is known of a weight's memory since it was last known to be unitary; see Note [Off the manifold]."""

    def __init__(self) -> None:
        self._mark: tuple[int, int] | None = None
        self._sum: Tensor | None = None
        self.every = 1  # from one entry of that sum to the next
        self.reported_after: int | None = None  # how many steps the weight had taken when a write was reported
        self.cause = ""  # of its values, if they may be none of a unitary matrix: "to_empty", or the name of a filler

    def note(self, parameter: Tensor, every: int = 1) -> None:
        """Keeps in mind that the parameter is unitary now, and the sum of one entry of so many."""
        self.every = every
        self._mark, self._sum, self.cause = self._counted(parameter), self._sum_of_some(parameter), ""

    def is_of(self, parameter: Tensor) -> bool:
        """Whether nothing has written the parameter since."""
        return self.is_counted(parameter) and not self.is_overlooked(parameter)

    def is_of_in_passing(self, parameter: Tensor) -> bool:
        """:meth:`is_of` as a forward pass asks, which off the CPU waits for no sum and asks for the count alone."""
        return self.is_counted(parameter) and not (parameter.is_cpu and self.is_overlooked(parameter))

    def is_counted(self, parameter: Tensor) -> bool:
        """Whether torch has counted no write of the parameter since."""
        return self._mark is not None and self._mark == self._counted(parameter)

    def is_overlooked(self, parameter: Tensor) -> bool:
        """Whether something has written it without being counted; off the CPU the host waits for the answer."""
        if self._sum is None or parameter.is_meta or not self.is_counted(parameter):
            return False
        return not torch.equal(self._sum, self._sum_of_some(parameter))

    def _sum_of_some(self, parameter: Tensor) -> Tensor:
        return parameter.detach().flatten()[:: self.every].sum()

    @staticmethod
    def _counted(parameter: Tensor) -> tuple[int, int] | None:
        if parameter.is_inference():  # torch counts no versions of these, and nothing trains them
            return None
        return parameter._version, parameter.data_ptr()


@lru_cache
def _every(rows: int, columns: int, is_complex: bool) -> int:
    """How far entries may be from one to the next, so that each row and each column of each matrix has one at least.

    At most a row, and without a factor in common with its length, so that as many rows as that meet all columns. Of
    pairs each row of real parts has one as well, and each row of imaginary parts.
    """
    length = 2 * columns if is_complex else columns
    return next((d for d in range(min(rows, columns), 1, -1) if gcd(d, length) == 1), 1)


# Note [What belongs to a tensor]
# Two modules that share a weight share its ``.grad``, which torch keeps with the tensor. So do they here: what is known
# of its memory is kept by the tensor's identity and not by a module, and goes when the tensor goes. As ``.grad``, it
# does not travel with a copy or with what is saved.

_records: dict[int, tuple[Collected, Seen]] = {}


def record_of(parameter: Tensor) -> tuple[Collected, Seen]:
    """What belongs to the tensor itself, whichever modules hold it; see Note [What belongs to a tensor]."""
    record = _records.get(id(parameter))
    if record is None:
        record = _records[id(parameter)] = (Collected(parameter), Seen())
        weakref.finalize(parameter, _records.pop, id(parameter), None).atexit = False
    return record


@dataclass(eq=False, slots=True)  # not frozen: that takes a microsecond more, for each weight at each step
class UnitaryWeight:
    """One unitary weight and what its module keeps about it, at one moment: assigning to it changes no module.

    Attributes:
        name: name of the parameter, qualified by the module tree it was found in.
        parameter: what is stored, ``(..., m, n)``, or ``(..., m, n, 2)`` for a complex weight; see also ``unfolded``.
        is_complex: whether the parameter holds pairs (real part, imaginary part).
        declared: the rule of its layer, which may leave open what suits the layer; see :attr:`rule`.
        count: int64 buffer ``()``, number of its steps so far.
        previous: buffer of the shape of a left factor for the power sampler, stored as the parameter is; or None.
        index: position among the unitary weights of that tree, or in its layer if its gradient is factored; part of the
            key of its random numbers.
        memory: buffers of a rule that names a momentum, as they are stored, or None.
        collected: its sampled gradient, in a layer with ``gradient="factored"``; else None.
        seen: when it was last known to be unitary.
        group: the ranks that it shares its gradients with, or None.
        scaler: what scales the losses; see Note [Unscaled in backward].
        fit: what suits the layer where the rule leaves it open.
        unfolded: the shape ``(..., m, n)`` of the matrices, if the parameter is stored in another one.
        is_lazy: whether matrices without a gradient stay as they are; see Note [Lazy weights].
    """

    name: str
    parameter: nn.Parameter
    is_complex: bool
    declared: UpdateRule
    count: Tensor
    previous: Tensor | None = None
    index: int = 0
    memory: Memory | None = None
    collected: Collected | None = None
    seen: Seen = field(default_factory=Seen)
    group: ProcessGroup | None = None
    scaler: GradScaler | None = None
    fit: Fit = field(default_factory=Fit)
    unfolded: torch.Size | None = None
    is_lazy: bool = False

    @property
    def rule(self) -> UpdateRule:
        """How it moves."""
        return self.declared.suited(min(self.shape), self.fit)

    @property
    def shape(self) -> torch.Size:
        """(m, n), of a weight ``(..., m, n)``."""
        if self.unfolded is not None:
            return self.unfolded[-2:]
        return self.parameter.shape[-3:-1] if self.is_complex else self.parameter.shape[-2:]

    def note(self) -> None:
        """Keeps in mind that the weight is unitary now."""
        self.seen.note(self.parameter, _every(*self.shape, self.is_complex))

    @property
    def key(self) -> tuple[int, int]:
        """What the random numbers of the next step depend on, next to the seed."""
        return self.index, int(self.count)

    @property
    def matrix(self) -> Tensor:
        """The unitary matrices ``(..., m, n)``, a view of the parameter's memory without a graph."""
        return self.as_matrix(self.parameter.detach())

    @property
    def previous_factor(self) -> Tensor | None:
        """The left factor of the step before ``(..., m, k)``, for the power sampler."""
        return None if self.previous is None else as_complex(self.previous, self.is_complex)

    @property
    def gradient(self) -> GradientOperator | None:
        """The gradient of :attr:`matrix`, already sampled if it is factored; None where there is none, or if frozen."""
        if not self.parameter.requires_grad:
            return None
        if self.collected is not None and (content := self.collected.content) is not None:
            if content.low_rank is not None:
                return LowRankGradient.of(content.low_rank)
            return content.kept or DenseGradient(torch.zeros_like(self.matrix))
        gradient = self.parameter.grad
        if gradient is None:
            return None
        if gradient.layout != torch.strided:
            raise RuntimeError(f"expected a dense gradient of the unitary weight {self.name!r}, got {gradient.layout}")
        return DenseGradient(self.as_matrix(gradient.detach().contiguous()))

    @property
    def is_factored(self) -> bool:
        """Whether its gradient is collected in backward; alike on all ranks, of which some may have none."""
        is_matrix = self.parameter.grad is not None and self.collected is not None and self.collected.content is None
        return self.collected is not None and not is_matrix

    def placed(self, name: str, index: int) -> "UnitaryWeight":
        """The same weight by its name and place in a larger tree."""
        if self.collected is not None:  # its layer may sample it in backward, where it does not know its place
            index = self.index
        # Spelt out: dataclasses.replace takes four times as long.
        parts = (self.parameter, self.is_complex, self.declared, self.count, self.previous)
        state = (self.memory, self.collected)
        return UnitaryWeight(
            name, *parts, index, *state, self.seen, self.group, self.scaler, self.fit, self.unfolded, self.is_lazy
        )

    def as_matrix(self, stored: Tensor) -> Tensor:
        """The matrices ``(..., m, n)`` that a contiguous tensor, stored as the parameter is, stands for, as a view."""
        return as_complex(as_unfolded(stored, self.unfolded, self.is_complex), self.is_complex)

    def as_stored(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`as_matrix`."""
        stored = torch.view_as_real(matrix) if self.is_complex else matrix
        return stored if self.unfolded is None else stored.reshape(self.parameter.shape)

    def drop_gradient(self) -> None:
        """Forgets the gradient, as ``zero_grad`` does."""
        self.parameter.grad = None


@runtime_checkable
class UnitaryOwner(Protocol):
    """A module that owns unitary weights: anything with this one method is found by :func:`unitary_weights`."""

    def own_unitary_weights(self) -> Iterable[UnitaryWeight]:
        """The weights that the module itself registers, by their local names."""
        ...


def as_complex(stored: Tensor, is_complex: bool) -> Tensor:
    """What a stored tensor stands for: a complex view of real pairs ``(..., 2)``, or the tensor itself."""
    return torch.view_as_complex(stored) if is_complex else stored


def as_unfolded(stored: Tensor, shape: torch.Size | None, is_complex: bool) -> Tensor:
    """A stored tensor as matrices of this shape, pairs aside; itself where there is no such shape."""
    return stored if shape is None else stored.view(shape + stored.shape[-1:] if is_complex else shape)


def unitary_weights(module: nn.Module) -> Iterator[UnitaryWeight]:
    """All unitary weights of a module tree in the order of its modules, each once even where it is tied.

    Raises:
        TypeError: for what is not a module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a module, got {type(module).__name__}")
    seen: set[int] = set()
    for prefix, owner in module.named_modules():
        if not hasattr(type(owner), "own_unitary_weights"):  # isinstance of a protocol takes ten times as long
            continue
        for weight in owner.own_unitary_weights():
            if id(weight.parameter) not in seen:
                name = f"{prefix}.{weight.name}" if prefix else weight.name
                yield weight.placed(name, len(seen))
                seen.add(id(weight.parameter))


def clear_collected(weights: Iterable[UnitaryWeight]) -> None:
    """Forgets the factored gradients of weights, and leaves those that are matrices."""
    for weight in weights:
        if weight.collected is not None:
            weight.collected.drop()
