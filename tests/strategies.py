"""What the property tests draw: sizes, seeds and dtypes, from which the tensors are made; and degenerate updates."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from unitary_layers.linalg import haar_unitary

REAL = (torch.float32, torch.float64)
DTYPES = (*REAL, torch.complex64, torch.complex128)

dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**31)
batches = st.sampled_from([(), (1,), (3,), (2, 2)])
sizes = st.sampled_from([1, 2, 3, 4, 5, 8, 13, 24])
scales = st.sampled_from([1e-20, 1e-8, 1e-4, 1e-2, 0.3, 1.0, 5.0, 100.0, 1e4])
degeneracies = st.sampled_from(["none", "zero", "parallel", "repeated", "one-zero-column", "skew"])


def wide(x: Tensor) -> Tensor:
    """In float64 or complex128."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


@dataclass
class Problem:
    """A unitary weight ``(*batch, n, n)`` and an update ``a b^H`` of Frobenius norm ``scale`` (a batch entry)."""

    weight: Tensor
    a: Tensor
    b: Tensor
    scale: float

    def dense(self) -> tuple[Tensor, Tensor]:
        """Weight and update as float64 matrices."""
        return wide(self.weight), wide(self.a) @ wide(self.b).mH


@st.composite
def problems(draw: st.DrawFn, max_scale: float = 1e4) -> Problem:
    """Weights and updates of any shape, dtype, scale and degeneracy; ranks up to and beyond n / 2."""
    n, batch, dtype = draw(sizes), draw(batches), draw(dtypes)
    k = draw(st.integers(1, n))
    scale = draw(scales.filter(lambda s: s <= max_scale))
    g = torch.Generator().manual_seed(draw(seeds))
    w64 = haar_unitary(n, batch=batch, dtype=wide(torch.empty(0, dtype=dtype)).dtype, generator=g)
    a, b = (torch.randn(*batch, n, k, dtype=w64.dtype, generator=g) for _ in range(2))
    kind = draw(degeneracies)
    if kind == "zero":
        a = torch.zeros_like(a)
    elif kind == "parallel":
        a = w64 @ b
    elif kind == "repeated":
        a, b = a[..., :1].expand(*batch, n, k), b[..., :1].expand(*batch, n, k)
    elif kind == "one-zero-column":
        b = b.clone()
        b[..., 0] = 0
    elif kind == "skew" and n > 1:
        a, b = torch.cat([w64 @ b, -(w64 @ a)], dim=-1), torch.cat([a, b], dim=-1)
    norm = torch.linalg.matrix_norm(a @ b.mH)[..., None, None]
    a = a * (scale / torch.where(norm == 0, 1, norm))
    return Problem(w64.to(dtype), a.to(dtype), b.to(dtype), scale)
