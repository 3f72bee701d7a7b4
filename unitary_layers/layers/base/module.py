"""What every module with unitary weights shares: how they are stored, found, loaded, moved and stepped."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed import ProcessGroup

from ...init import INITS
from ...projunn.rule import SPECTRAL_LENGTH, Fit, UpdateRule
from ...training.memory import Memory
from ...training.triggers.strangers import enrol
from ...training.watch import vouch, watch
from ...training.weight import UnitaryWeight, as_complex, record_of
from .inputs import as_dtype, as_half, as_real, check_rule, check_stored
from .loading import STATE_VERSION, cast_along, is_too_new, prepare_state
from .methods import UnitaryMethods
from .quantise import Quantiser
from .states import LATER, STATE, state_names, state_shapes
from .symbolic import OneOperation

# Note [Storage]
# A complex weight is stored as a real parameter of pairs (..., 2) and read through view_as_complex. With a native
# complex parameter .to(torch.float64) and .to(torch.bfloat16) drop the imaginary part, GradScaler and
# clip_grad_value_ raise, and weight averages copy where they should average. Unitary weights never fall below
# float32: half(), bfloat16() and autocast change the activations, not the manifold. That a parameter is unitary is
# known to its module by name, because a mark on the tensor is lost by deepcopy, load_state_dict(assign=True) and the
# meta device. Counters are buffers and travel with state_dict, safetensors and averages.


class UnitaryModule(UnitaryMethods, OneOperation):
    """Base of the layers: registers unitary parameters and keeps them unitary through what torch does to a module.

    Args:
        update: how the unitary weights move.
        init: "haar", "identity", "henaff", "cayley", "timescales", or a filler of the form of
            :func:`unitary_layers.init.haar_`.
        dtype: real or complex floating point type of the layer; torch's default one if None.
        gradient: "dense" (autograd leaves a matrix in ``.grad``) or "factored"; see Note [Sampling inside backward].

    Attributes:
        is_complex: whether parameters are stored as real pairs; see Note [Storage].
        process_group: the ranks that :func:`share_gradients` has it train with, or None.
        grad_scaler: what scales the losses, as told by :func:`use_grad_scaler`, or None.
    """

    _version: int = STATE_VERSION  # nn.Module writes it into the metadata of state dicts
    extra_inits: ClassVar[tuple[str, ...]] = ()  # of a layer that knows a start of its own
    step_length: ClassVar[float] = SPECTRAL_LENGTH  # of a rule without one; see Note [One length for all layers]
    rank_share: ClassVar[int] = 16  # what part of n is the rank of a rule without one
    uses: int = 1  # how often a weight acts, one time after another, in a forward pass
    __jit_unused_properties__: ClassVar[list[str]] = [
        *OneOperation.__jit_unused_properties__,
        *("update", "matrix", "support", "all_weights"),
    ]

    def __init__(
        self,
        update: UpdateRule,
        init: str | Callable[..., Tensor],
        dtype: torch.dtype | None,
        gradient: str = "dense",
    ) -> None:
        super().__init__()
        # Not told of at the class, or TorchScript would compile the quantiser; see Note [Quantised weights].
        self.quantiser: Quantiser | None = None
        self._registered: dict[str, int] = {}  # name: the id of its parameter; see forward.py
        dtype = as_dtype(dtype)
        check_rule(update, gradient)
        if not callable(init) and init not in (inits := (*INITS, *self.extra_inits)):
            raise ValueError(f"expected init to be a function or one of {inits}, got {init!r}")
        self.is_complex = dtype.is_complex
        self.init = init
        self.gradient = gradient
        self.process_group: ProcessGroup | None = None
        self.grad_scaler: GradScaler | None = None
        self._unitary: dict[str, bool] = {}  # name: whether it is stored as pairs
        self._shapes: dict[str, torch.Size] = {}  # name: of what is stored
        self._unfolded: dict[str, torch.Size] = {}  # name: shape of its matrices, if it is stored in another one
        self._lazy = frozenset[str]()  # names of weights of which only what was used steps
        self._update = update
        enrol(self)

    @property
    def update(self) -> UpdateRule:
        """How the unitary weights move; assign another :class:`UpdateRule` to change it."""
        return self._update

    @update.setter
    def update(self, rule: UpdateRule) -> None:
        check_rule(rule, self.gradient)
        self._update = rule
        for name in self._unitary:
            self._register_state(name, self._unitary[name])

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As torch's; ``ValueError`` for what cannot stand for a unitary weight by its shape or dtype."""
        if param is not None and name in self._shapes:
            check_stored(f"{type(self).__name__}.{name}", param, self._shapes[name])
        super().register_parameter(name, param)
        self._registered[name] = id(param)

    def new_parameter(self, shape: Sequence[int], device: Any, dtype: torch.dtype | None) -> nn.Parameter:
        """An unfilled ordinary parameter of the layer's dtype; complex ones are stored as pairs ``(*shape, 2)``."""
        return nn.Parameter(self._empty(shape, device, dtype))

    def register_unitary(
        self,
        name: str,
        shape: Sequence[int],
        device: Any,
        dtype: torch.dtype | None,
        unfolded: Any = None,
        lazy: bool = False,
    ) -> None:
        """Registers an unfilled unitary parameter ``(..., m, n)`` and the buffers of its update.

        One of another shape stands for the matrices of the shape ``unfolded`` ``(..., m, n)`` that a view makes of it.
        Of a lazy one ``(V, m, n)`` only those matrices step that a batch has used; see Note [Lazy weights].
        """
        if lazy:
            self._lazy |= {name}
        if unfolded is not None:
            self._unfolded[name] = torch.Size(unfolded)
        stored = self._empty(shape, device, dtype)
        parameter = nn.Parameter(stored.to(torch.promote_types(stored.dtype, torch.float32)))
        self.register_parameter(name, parameter)
        self.register_buffer(f"{name}_count", torch.zeros((), dtype=torch.int64, device=device))
        self._register_state(name, stored.ndim > len(shape))
        self._shapes[name] = stored.shape
        self._unitary[name] = stored.ndim > len(shape)  # last: from now on other threads may find it

    def reset_unitary(self, filler: Callable[[Tensor], Any] | None = None) -> None:
        """Fills the unitary parameters, by ``init`` where no filler is given, and starts their counters at zero."""
        if filler is None:
            filler = self.init if callable(self.init) else INITS[self.init]
        for weight in self.own_unitary_weights():
            filler(weight.matrix)
            for buffer in (weight.count, weight.previous, *(weight.memory or ())):
                if buffer is not None:
                    buffer.zero_()
            if filler in INITS.values():
                weight.note()
            elif filler is self.init:  # a user's own
                vouch(weight, getattr(filler, "__name__", repr(filler)))

    def value(self, name: str, like: Tensor | None = None) -> Tensor:
        """The parameter as the real or complex tensor that it stands for, in half precision where ``like`` is."""
        return as_half(as_complex(getattr(self, name), self.is_complex), like)

    def own_unitary_weights(self) -> Iterator[UnitaryWeight]:
        """The unitary weights that this module itself holds, without those of its children, and none that it lacks."""
        return map(self.unitary_weight, [name for name in list(self._unitary) if getattr(self, name, None) is not None])

    def unitary_weight(self, name: str) -> UnitaryWeight:
        """One of the unitary weights that this module itself holds, by its name."""
        count, previous, *memory = map(self._buffers.get, state_names(name))
        kept = [buffer for buffer in memory if buffer is not None]
        assert count is not None  # of all states the one that every weight has
        # A replica, or what torch parametrises, has an attribute instead, with a graph; that takes ten times as long.
        parameter = self._parameters.get(name)
        parameter = torch.enable_grad()(getattr)(self, name) if parameter is None else parameter
        collected, seen = record_of(parameter)
        is_collected = self.gradient == "factored" or collected.content is not None  # by a layer that it is tied to
        parts = (name, parameter, self._unitary[name], self._update, count, previous)
        return UnitaryWeight(
            *parts,
            list(self._unitary).index(name),
            Memory(*kept) if kept else None,
            collected if is_collected else None,
            seen,
            self.process_group,
            self.grad_scaler,
            Fit(self.step_length / self.uses**0.5, self.rank_share),
            self._unfolded.get(name),
            name in self._lazy,
        )

    def extra_repr_of_rule(self, default_init: str) -> list[str]:
        """Those of the options shared by all layers that are not the default, for ``extra_repr``."""
        parts = [] if self._update == UpdateRule() else [f"update={self._update}"]
        parts += [] if self.gradient == "dense" else [f"gradient={self.gradient!r}"]
        parts += [] if self.quantiser is None else [str(self.quantiser)]
        return parts if self.init == default_init else [*parts, f"init={self.init!r}"]

    def _empty(self, shape: Sequence[int], device: Any, dtype: torch.dtype | None) -> Tensor:
        dtype = torch.get_default_dtype() if dtype is None else dtype
        return torch.empty((*shape, 2) if dtype.is_complex else tuple(shape), device=device, dtype=dtype.to_real())

    def _kept(self) -> dict[str, bool]:
        """The parameters and buffers that never fall below float32, and whether they may be given as complex."""
        parameters = dict.fromkeys(self._parameters, True) if self.is_complex else self._unitary
        return parameters | {f"{name}_{state}": False for name in self._unitary for state in STATE[1:]}

    def _register_state(self, name: str, is_pairs: bool) -> None:
        """The buffers of the rule: the left factor of the last step, the memory."""
        parameter = getattr(self, name)
        matrices = self._unfolded.get(name, parameter.shape[:-1] if is_pairs else parameter.shape)
        rule = self._update.suited(min(matrices[-2:]), Fit(share=self.rank_share))
        shapes = state_shapes(rule, parameter.shape, matrices, is_dense=self.gradient == "dense")
        for state, shape in zip(STATE[1:], shapes, strict=True):
            present = self._buffers.pop(f"{name}_{state}", None)  # and none that is None: torch.export miscounts them
            if shape is not None:
                fits = present is not None and present.shape == shape
                zeros = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
                self.register_buffer(f"{name}_{state}", present if fits else zeros)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "UnitaryModule":
        # Note [Storage]: what would take a weight (or a part of a complex number) below float32 only moves it.
        kept = [t for name in self._kept() if (t := getattr(self, name, None)) is not None]
        protected = {id(t) for t in kept} | {id(t.grad) for t in kept if t.grad is not None}

        def real(t: Tensor) -> Tensor:  # a complex dtype is the precision of the pairs
            moved = fn(t)
            if moved.is_complex() and not t.is_complex() and not self.is_complex:
                raise ValueError(f"expected a real dtype for a layer with real weights, got {moved.dtype}")
            return as_real(moved, t)

        def in_its_precision(t: Tensor) -> Tensor:
            moved = real(t)
            least = torch.promote_types(moved.dtype, torch.float32) if t.is_floating_point() else t.dtype
            return moved if moved.dtype == least else t.to(device=moved.device, dtype=least)

        def on_stored(t: Tensor) -> Tensor:  # type(torch.float16) would cast counters, channels_last permute weights
            is_count = not (t.is_floating_point() or t.is_complex())
            return in_its_precision(t).contiguous() if is_count or id(t) in protected else real(t)

        with cast_along(self, in_its_precision):
            super()._apply(on_stored, recurse)  # type: ignore[no-untyped-call]  # torch's has no annotations
            self._note_registered()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"process_group": None, "grad_scaler": None}  # a copy trains by itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(LATER | state)  # type: ignore[no-untyped-call]  # torch's has no annotations
        self._note_registered()
        enrol(self)

    def _note_registered(self) -> None:
        """For what has replaced parameters without :meth:`register_parameter`."""
        self._registered = {name: id(parameter) for name, parameter in self._parameters.items()}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self.training:  # in evaluation the weights are saved, as they are used, as they are
            watch(w for w in self.own_unitary_weights() if w.seen.is_overlooked(w.parameter))
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool, *reports: list[str]
    ) -> None:
        if is_too_new(local_metadata, f"{prefix}{type(self).__name__}", reports[-1]):
            return
        assign = local_metadata.get("assign_to_params_buffers", False)
        prepare_state(state_dict, prefix, self._kept(), self.own_unitary_weights(), reports[-1], assign=assign)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *reports)
