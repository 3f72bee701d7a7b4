"""What a user would otherwise pick, each as a function of the same form; those that are not installed are left out."""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

Work = Callable[[], object]


def updates(n: int, gradient: Tensor) -> dict[str, Work]:
    """The update alone of an orthogonal n x n weight, from a gradient with respect to it."""
    works = {name: _of_map(n, gradient, name) for name in ("cayley", "matrix_exp", "householder")}
    if find_spec("geotorch"):
        import geotorch

        layer = nn.Linear(n, n, bias=False)
        geotorch.orthogonal(layer, "weight")
        works["geotorch"] = _through_map(layer, gradient)
    if find_spec("geoopt"):
        import geoopt

        point = geoopt.ManifoldParameter(_orthogonal(n), manifold=geoopt.EuclideanStiefel())
        works["geoopt"] = _of_optimizer(point, geoopt.optim.RiemannianSGD([point], lr=1e-3), gradient)
    if find_spec("pogo"):
        from pogo import POGO
        from pogo.base import SGD

        point = nn.Parameter(_orthogonal(n)[None])
        works["pogo"] = _of_optimizer(point, POGO([point], SGD(momentum=0.0), lr=1e-3), gradient)
    return works


def linears(n: int) -> dict[str, nn.Module]:
    """Linear layers whose weight is orthogonal through a map, to be trained by a plain optimiser."""
    maps = ("cayley", "matrix_exp", "householder")
    return {name: orthogonal(nn.Linear(n, n, bias=False), orthogonal_map=name) for name in maps}


def convolutions(channels: int, size: int) -> dict[str, nn.Module]:
    """Orthogonal convolutions of the same shape."""
    layers: dict[str, nn.Module] = {"cayley": CayleyConv2d(channels)}
    if find_spec("orthogonium"):
        from orthogonium.layers.conv.AOC import AdaptiveOrthoConv2d

        layers["orthogonium"] = AdaptiveOrthoConv2d(
            channels, channels, kernel_size=3, padding=1, padding_mode="circular", bias=False
        )
    return layers


class CayleyConv2d(nn.Module):
    """The Cayley convolution (Trockman and Kolter, ICLR 2021, arXiv 2104.07167), straight from its formula."""

    def __init__(self, channels: int, taps: int = 3) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(channels, channels, taps, taps) / (channels * taps**2) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        blocks = torch.fft.rfft2(self.kernel, s=size).conj().permute(2, 3, 0, 1)
        skew = blocks - blocks.mH
        eye = torch.eye(skew.size(-1), dtype=skew.dtype, device=skew.device)
        bins = torch.fft.rfft2(x).permute(2, 3, 1, 0)
        y = torch.linalg.solve(eye + skew, eye - skew) @ bins
        return torch.fft.irfft2(y.permute(3, 2, 0, 1), s=size)


def _orthogonal(n: int) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n)).Q.contiguous()


def _of_map(n: int, gradient: Tensor, name: str) -> Work:
    return _through_map(orthogonal(nn.Linear(n, n, bias=False), orthogonal_map=name), gradient)


def _through_map(layer: nn.Module, gradient: Tensor) -> Work:
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)

    def work() -> None:
        layer.weight.backward(gradient)
        optimizer.step()
        optimizer.zero_grad()

    return work


def _of_optimizer(point: nn.Parameter, optimizer: torch.optim.Optimizer, gradient: Tensor) -> Work:
    def work() -> None:
        point.grad = gradient.reshape(point.shape).clone()
        optimizer.step()

    return work
