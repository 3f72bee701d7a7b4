"""Bounds of chains of complex numbers, where some functions that bend real numbers gently have poles."""

import pytest
import torch
from torch import nn

from unitary_layers import StiefelConv2d, UnitaryLinear
from unitary_layers.robust import (
    AbsActivation,
    BatchCentering,
    LayerCentering,
    NormPool,
    SpatialShift,
    lipschitz_bound,
)

SHAPE = (4, 6, 6)
COMPLEX = {
    "unitary": lambda: UnitaryLinear(6, 6, dtype=torch.complex128),
    "matrix": lambda: nn.Linear(6, 6, dtype=torch.complex128),
    "kernel": lambda: StiefelConv2d(4, 4, 3, padding=1, dtype=torch.complex128),
}
GENTLE = [  # all that is known without weights, and takes complex numbers
    AbsActivation(),
    AbsActivation(0.5),
    BatchCentering(4, dtype=torch.float64),
    LayerCentering(SHAPE, dtype=torch.float64),
    NormPool(),
    SpatialShift(),
    nn.AdaptiveAvgPool2d(1),
    nn.ChannelShuffle(2),
    nn.Dropout(),
    nn.Flatten(),
    nn.PixelShuffle(2),
    nn.PixelUnshuffle(2),
    nn.Softsign(),
    nn.ZeroPad2d(1),
]
REFUSED = [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), nn.LeakyReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2)]


@pytest.mark.parametrize("kind", [nn.Tanh, nn.Sigmoid])
@pytest.mark.parametrize("name", COMPLEX)
def test_what_has_poles_is_refused_beside_a_complex_layer(name, kind):
    layer = COMPLEX[name]()
    for chain in ((layer, kind()), (nn.Sequential(layer, nn.Identity()), nn.Sequential(kind())), (kind(), layer)):
        with pytest.raises(ValueError, match=f"expected a {kind.__name__} of real inputs, got one beside a complex"):
            lipschitz_bound(nn.Sequential(*chain))
    with pytest.raises(ValueError, match="of real inputs"):  # of which half stays complex
        lipschitz_bound(nn.Sequential(layer, AbsActivation(0.5), kind()))
    for real in (AbsActivation(), NormPool(dim=-1)):
        assert lipschitz_bound(nn.Sequential(layer, real, kind())) == pytest.approx(lipschitz_bound(layer))


def test_a_real_chain_keeps_its_functions():
    assert lipschitz_bound(nn.Sequential(nn.Tanh(), UnitaryLinear(6, 6), nn.Sigmoid())) == 1


@pytest.mark.parametrize("module", GENTLE, ids=repr)
def test_no_distance_of_complex_numbers_grows_by_more(module):
    module = module.eval()
    bound = lipschitz_bound(nn.Sequential(COMPLEX["unitary"](), module).eval())
    x, y = torch.randn(2, 200, *SHAPE, dtype=torch.complex128)
    x = x * torch.logspace(-3, 1, 200).view(-1, 1, 1, 1)  # also small ones
    moved = 1e-3 * y
    grown = (module(x + moved) - module(x)).flatten(1).norm(dim=1)
    assert (grown / moved.flatten(1).norm(dim=1)).max() <= bound * (1 + 1e-9)


@pytest.mark.parametrize("module", REFUSED, ids=repr)
def test_torch_refuses_complex_numbers_to_the_others(module):
    with pytest.raises((RuntimeError, NotImplementedError)):
        module(torch.randn(2, *SHAPE, dtype=torch.complex128))
