"""What the property tests draw: sizes, seeds and dtypes, from which the tensors are made; and degenerate updates."""

import math
import warnings
from dataclasses import dataclass

import torch
from hostile import SPOILS, one_spoilt
from hypothesis import strategies as st
from torch import Tensor, nn

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
    """A unitary weight ``(*batch, m, n)`` and an update ``a b^H`` of Frobenius norm ``scale`` (a batch entry)."""

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
    m, batch, dtype = draw(sizes), draw(batches), draw(dtypes)
    n = draw(st.one_of(st.just(m), sizes))
    k = draw(st.integers(1, min(m, n)))
    scale = draw(scales.filter(lambda s: s <= max_scale))
    g = torch.Generator().manual_seed(draw(seeds))
    w64 = haar_unitary(m, n, batch=batch, dtype=wide(torch.empty(0, dtype=dtype)).dtype, generator=g)
    a, b = (torch.randn(*batch, side, k, dtype=w64.dtype, generator=g) for side in (m, n))
    kind = draw(degeneracies)
    if kind == "zero":
        a = torch.zeros_like(a)
    elif kind == "parallel":
        a = w64 @ b
    elif kind == "repeated":
        a, b = a[..., :1].expand(*batch, m, k), b[..., :1].expand(*batch, n, k)
    elif kind == "one-zero-column":
        b = b.clone()
        b[..., 0] = 0
    elif kind == "skew" and n > 1:
        v = torch.randn(*batch, n, k, dtype=w64.dtype, generator=g)
        a, b = torch.cat([w64 @ b, -(w64 @ v)], dim=-1), torch.cat([v, b], dim=-1)
    norm = torch.linalg.matrix_norm(a @ b.mH)[..., None, None]
    a = a * (scale / torch.where(norm == 0, 1, norm))
    return Problem(w64.to(dtype), a.to(dtype), b.to(dtype), scale)


SHAPES = ((), (0,), (3,), (0, 0), (1, 1), (3, 3), (4, 4), (3, 4), (2, 3, 3), (0, 3, 3), (2, 0, 0), (3, 0), (1, 2, 4, 4))
STORED = (*DTYPES, torch.float16, torch.bfloat16, torch.complex32, torch.float8_e4m3fn, torch.int64, torch.uint8)
STORED += (torch.bool,)
LAYOUTS = {
    "plain": lambda x: x,
    "expanded": lambda x: x[:1].expand(x.shape) if x.ndim and len(x) else x,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1) if x.ndim else x,
    "every other": lambda x: x.repeat_interleave(2, -1)[..., ::2] if x.ndim else x,
    "lazily conjugate": lambda x: x.conj(),
    "negative view": lambda x: torch.complex(x, x).conj().imag if x.dtype in REAL else x,
    "with a graph": lambda x: x.clone().requires_grad_() if x.is_floating_point() or x.is_complex() else x,
    "without a version": lambda x: torch.inference_mode()(torch.clone)(x),
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse() if x.ndim else x,
    "rows": lambda x: x.to_sparse_csr() if x.ndim == 2 and x.numel() else x,
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8) if x.dtype == torch.float32 else x,
}
# what is no tensor, no module and no number that any option wants
OBJECTS = (None, "", "x", b"x", (), [[1.0]], {}, object(), nn.ReLU, len, 1j, range(3), ..., math.nan, -math.inf)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The tensor in another layout; as it is where there is none for its dtype and shape."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layouts in beta
        return LAYOUTS[layout](x)


@st.composite
def hostile_tensors(draw: st.DrawFn) -> object:
    """Tensors of any shape, dtype, layout and scale, with one value or all of them spoilt; now and then no tensor."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(OBJECTS))
    generator = torch.Generator().manual_seed(draw(seeds))
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(STORED))
    x = torch.randn(shape, dtype=torch.complex128 if dtype.is_complex else torch.float64, generator=generator)
    how = draw(st.sampled_from(["as it is", "one", "all"]))
    if how != "as it is":
        value = draw(st.sampled_from(SPOILS))
        x = torch.full_like(x, value) if how == "all" else one_spoilt(x, draw(seeds), value) if x.numel() else x
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = x.to(dtype)
    return laid_out(x, layout) if dtype in (*DTYPES, torch.int64) else x
