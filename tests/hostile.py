"""What hostile input may do: work, or be refused in words with everything as it was; and a count of what was tried."""

import math
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unitary_layers.training import unitary_weights

REFUSALS = (ValueError, RuntimeError, TypeError)
LEAKS = (NotImplementedError, torch.linalg.LinAlgError)  # RuntimeErrors from deep inside
SPOILS = (math.nan, math.inf, -math.inf, 3e38, 1e38, -1e38, 1e-38, 1e-45, 0.0)

TRIED: Counter[str] = Counter()


def survived(kind: str, call: Callable[[], Any], *modules: nn.Module) -> Any:
    """What a hostile call returns, or None where it is refused; then no parameter, buffer or gradient has changed."""
    TRIED[kind] += 1
    before = [held(module) for module in modules]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except REFUSALS as refusal:
            error = refusal
    assert str(error)
    assert not isinstance(error, LEAKS), f"{type(error).__name__} from deep inside: {error}"
    for module, (tensors, gradients) in zip(modules, before, strict=True):
        now, gradients_now = held(module)
        assert now.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert same(now[name], tensor), f"{name} has changed"
        assert gradients_now == gradients
    return None


def held(module: nn.Module) -> tuple[dict[str, Tensor], list[tuple[object, ...]]]:
    """Copies of parameters and buffers, and which gradients there are, by identity and version."""
    tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    gradients = [(id(g), None if g.is_inference() else g._version) for g in gradients]
    collected = [id(w.collected.low_rank) for w in unitary_weights(module) if w.collected is not None]
    return tensors, [*gradients, *collected]


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, NaN included."""
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def is_finite(x: object) -> bool:
    """Whether it is a dense tensor on a device with values, all of them finite."""
    if not isinstance(x, Tensor) or x.layout != torch.strided or x.is_meta or x.is_quantized:
        return False
    return bool(torch.isfinite(x.detach()).all())


def one_spoilt(x: Tensor, place: int, value: float) -> Tensor:
    """A copy of a dense tensor with one value in it."""
    spoilt = x.detach().clone(memory_format=torch.contiguous_format)
    spoilt.view(-1)[place % max(x.numel(), 1)] = value
    return spoilt
