"""Units of two orthogonal operators: each has one singular value, and together they are any contraction."""

import pytest
import timm
import torch
from closeness import assert_rounding
from torch import Tensor, nn

from unitary_layers import StiefelConv2d, attach
from unitary_layers.models import StiefelNet
from unitary_layers.models.stiefelnet import OperatorUnit

DD = {"dtype": torch.float64}


def singular_values(conv: nn.Module, side: int = 4) -> Tensor:
    """Those of a convolution of small images, as a matrix."""
    x = torch.randn(1, conv.in_channels, side, side, **DD)
    jacobian = torch.autograd.functional.jacobian(conv, x)
    return torch.linalg.svdvals(jacobian.reshape(-1, x.numel()))


def test_all_operators_behind_the_stem_have_one_singular_value_before_and_after_steps():
    net = StiefelNet((1, 1), (4, 6), operators=True, **DD)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    attach(net, optimizer)
    images, labels = torch.randn(6, 3, 16, 16, **DD), torch.arange(6)
    convs = [m for m in net.stages.modules() if isinstance(m, StiefelConv2d)]
    assert len(convs) == 8
    for _ in range(2):
        for conv in convs:
            expected = 2.0 if conv.kernel_size == (2, 2) else 1.0  # of k x k taps k
            found = singular_values(conv)
            assert_rounding(found, torch.full_like(found, expected), n=200)
        before = [conv.weight.clone() for conv in convs]
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
        assert all(not torch.equal(conv.weight, old) for conv, old in zip(convs, before, strict=True))


@pytest.mark.parametrize(("shape", "pool"), [((4, 4), 1), ((4, 6), 1), ((4, 4), 2), ((6, 2), 2)])
def test_a_unit_adds_its_input_where_the_shapes_agree(shape, pool):
    unit = OperatorUnit(*shape, pool, StiefelConv2d, nn.BatchNorm2d, nn.GELU, **DD).eval()
    nn.init.zeros_(unit.norm2.weight)  # nothing of what the operators do
    x = torch.randn(2, shape[0], 8, 8, **DD)
    y = unit(x)
    assert y.shape == (2, shape[1], 8 // pool, 8 // pool)
    assert torch.equal(y, x if shape == (4, 4) and pool == 1 else torch.zeros_like(y))


def test_a_linear_unit_can_be_any_contraction():
    """By the dilation of Halmos: of one pixel's channels, (I - C C^H)^(1/2) beside C."""
    unit = OperatorUnit(3, 3, 1, StiefelConv2d, lambda n, **dd: nn.Identity(), nn.Identity, **DD)
    c = torch.randn(3, 3, **DD)
    c = c / (1.5 * torch.linalg.matrix_norm(c, 2))
    values, vectors = torch.linalg.eigh(torch.eye(3, **DD) - c @ c.mT)
    beside = vectors * values.sqrt() @ vectors.mT
    with torch.no_grad():
        unit.conv.weight.copy_(torch.eye(12, **DD).view(12, 3, 2, 2))  # row 4 i + j: channel i of pixel j of a patch
        back = torch.zeros(3, 3, 4, **DD)
        back[..., 0], back[..., 1] = c, beside
        unit.back.weight.copy_(back.view(3, 12, 1, 1))
    assert_rounding(unit.back.weight.flatten(1) @ unit.back.weight.flatten(1).mT, torch.eye(3, **DD), n=20)
    x = torch.randn(1, 3, 4, 4, **DD)
    right = x.roll(-1, -1)
    expected = torch.einsum("oi,bihw->bohw", c, x) + torch.einsum("oi,bihw->bohw", beside, right)
    assert_rounding(unit(x) - x, expected, n=20)


def test_it_is_an_option_of_the_registered_model_and_of_its_twin():
    for conv in ("StiefelConv2d", "OrthogonalConv2d", "Conv2d"):
        net = timm.create_model("stiefelnet_projunn", operators=True, conv_layer=conv, widths=(4, 4, 4))
        assert net(torch.randn(2, 3, 16, 16)).shape == (2, 10)
        assert sum(isinstance(m, OperatorUnit) for m in net.modules()) == 6
