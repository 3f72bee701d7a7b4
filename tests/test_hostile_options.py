"""Absurd options of every constructor: refused in words, or what is built works."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hostile import is_finite, survived
from strategies import OBJECTS
from torch import nn

import unitary_layers
from unitary_layers import (
    GroupSort,
    HadamardLinear,
    HadamardRNN,
    ModReLU,
    OrthogonalConv2d,
    OrthogonalConvTranspose2d,
    OrthoResNet,
    OrthoViT,
    ProjUNN,
    StiefelConv2d,
    StiefelConvTranspose2d,
    UnitaryGraphConv,
    UnitaryGroupConv,
    UnitaryLinear,
    UnitaryMultiheadAttention,
    UnitaryPixelRNN,
    UnitaryRNN,
    UnitaryRNNCell,
    UpdateRule,
    attach,
    projunn_step,
    retract_,
)
from unitary_layers.testing import assert_unitary

NUMBERS = (-1, 0, 1, 2, True, False, 10**30, 10**400, -(10**30), 2**31, 0.5, 1.0, 1e300, math.nan, math.inf, -math.inf)
OTHERS = ("T", "haar", [2], (1, 2, 3), {"a": 1}, torch.tensor(1), torch.ones(2), torch.float32, torch.int8, torch.int64)
VALUES = (*NUMBERS, *OTHERS, *(value for value in OBJECTS if value is not len))
# so many layers that they would be made until the memory ends; torch's RNN makes them too
ENDLESS = {"num_layers": lambda value: isinstance(value, int) and value > 9}


def trained(shape: tuple[int, ...]) -> Callable[[nn.Module], None]:
    """Takes a step of a module on random input, after which it is to be unitary."""

    def train(module: nn.Module) -> None:
        y = module(torch.randn(shape))
        (y[0] if isinstance(y, tuple) else y).abs().sum().backward()
        projunn_step(module)
        if any(True for _ in unitary_layers.unitary_weights(module)):
            assert_unitary(module)
        assert all(is_finite(p) for p in module.parameters())

    return train


def with_rule(**options: Any) -> nn.Module:
    return UnitaryLinear(4, 4, update=UpdateRule(**options))


class Optimised(nn.Module):
    """A model of two layers and its optimiser, which takes two steps."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), UnitaryLinear(4, 4))
        self.optimizer = ProjUNN(self.net.parameters(), **options)

    def step(self) -> None:
        for _ in range(2):
            self.net(torch.ones(3, 4)).square().sum().backward()
            self.optimizer.step()
        assert_unitary(self.net)


LAYER = "device dtype update init gradient"
CONV = f"in_channels out_channels kernel_size stride padding dilation groups padding_mode input_size transform {LAYER}"
SIDES = "in_channels out_channels kernel_size stride padding dilation groups padding_mode normalize"
CASES = {
    "UpdateRule": (
        with_rule,
        {},
        "variant rank sampler lr seed retract_every nonfinite off_manifold",
        trained((3, 4)),
    ),
    "UnitaryLinear": (
        UnitaryLinear,
        {"in_features": 4, "out_features": 4},
        f"in_features out_features {LAYER}",
        (3, 4),
    ),
    "UnitaryRNN": (
        UnitaryRNN,
        {"input_size": 4, "hidden_size": 4},
        f"input_size hidden_size num_layers nonlinearity bias batch_first dropout bidirectional {LAYER}",
        (3, 2, 4),
    ),
    "UnitaryRNNCell": (
        UnitaryRNNCell,
        {"input_size": 4, "hidden_size": 4},
        f"input_size hidden_size nonlinearity {LAYER}",
        (3, 4),
    ),
    "HadamardLinear": (
        HadamardLinear,
        {"features": 4},
        "features device dtype block stages",
        lambda layer: layer(torch.randn(3, 4)).sum().backward(),
    ),
    "HadamardRNN": (
        HadamardRNN,
        {"input_size": 4, "hidden_size": 4},
        "input_size hidden_size num_layers nonlinearity bias batch_first dropout bidirectional device dtype "
        "block stages weight_bits return_sequence",
        lambda layer: layer(torch.randn(3, 2, 4))[0].sum().backward(),
    ),
    "full": (OrthogonalConv2d, {"in_channels": 4, "out_channels": 4, "input_size": 4}, CONV, (2, 4, 4, 4)),
    "local": (OrthogonalConv2d, {"in_channels": 4, "out_channels": 4, "kernel_size": 2}, CONV, (2, 4, 4, 4)),
    "transposed": (
        OrthogonalConvTranspose2d,
        {"in_channels": 4, "out_channels": 4, "kernel_size": 2},
        f"{CONV} output_padding",
        (2, 4, 4, 4),
    ),
    "StiefelConv2d": (StiefelConv2d, {"in_channels": 4, "out_channels": 4, "kernel_size": 2}, SIDES, (2, 4, 4, 4)),
    "StiefelConvTranspose2d": (
        StiefelConvTranspose2d,
        {"in_channels": 4, "out_channels": 4, "kernel_size": 2},
        f"{SIDES} output_padding",
        (2, 4, 4, 4),
    ),
    "ModReLU": (ModReLU, {"num_features": 4}, "num_features device dtype", (2, 4)),
    "GroupSort": (GroupSort, {}, "group_size dim", lambda layer: layer(torch.randn(2, 4))),
    "ProjUNN": (
        Optimised,
        {},
        "lr unitary_lr_scale direction momentum alpha eps weight_decay maximize base",
        lambda model: model.step(),
    ),
    "UnitaryGraphConv": (
        UnitaryGraphConv,
        {"in_channels": 4, "out_channels": 4},
        "in_channels out_channels device dtype time learn_time per_channel tol normalize add_self_loops symmetrize "
        "update init gradient",
        lambda layer: layer(torch.randn(3, 4), torch.tensor([[0, 1], [1, 0]])).sum().backward(),
    ),
    "UnitaryGroupConv": (
        UnitaryGroupConv,
        {"in_channels": 4, "out_channels": 4, "moves": [[1, 0]]},
        "in_channels out_channels moves device dtype update init",
        (3, 4, 2),
    ),
    "UnitaryMultiheadAttention": (
        UnitaryMultiheadAttention,
        {"embed_dim": 4, "num_heads": 2},
        f"embed_dim num_heads dropout kdim vdim batch_first score {LAYER}",
        lambda layer: layer(*torch.randn(3, 3, 2, 4)),
    ),
    "UnitaryPixelRNN": (
        UnitaryPixelRNN,
        {"widths": (4,), "embed_dim": 3},
        "widths embed_dim patch_size nonlinearity update gradient in_chans num_classes dtype",
        (2, 1, 2, 2),
    ),
    "OrthoViT": (
        OrthoViT,
        {"depths": (1,), "embed_dim": 4, "num_heads": 2, "patch_size": 2, "img_size": 4, "mlp_ratio": 1},
        "depths embed_dim num_heads patch_size mlp_ratio score update img_size in_chans num_classes",
        (2, 1, 4, 4),
    ),
    "OrthoResNet": (
        OrthoResNet,
        {"depths": (1,), "widths": (4,), "stem_width": 4, "support": "local", "init": "identity"},
        "depths widths stem_width stem_stride block bottleneck support update gradient img_size in_chans num_classes",
        (2, 3, 4, 4),
    ),
}


def absurd(name: str) -> list[tuple[str, object]]:
    """Options of a case with all values that are tried."""
    options = CASES[name][2].split()
    return [(o, v) for o in options for v in VALUES if not ENDLESS.get(o, lambda value: False)(v)]


@pytest.mark.parametrize("name", CASES)
def test_an_absurd_option_is_refused_or_works(name):
    build, usual, _, use = CASES[name]
    use = trained(use) if isinstance(use, tuple) else use
    for option, value in absurd(name):
        module = survived("options", lambda option=option, value=value: build(**(usual | {option: value})))
        if module is not None:
            survived("options", lambda module=module: use(module))


@pytest.mark.parametrize("value", [*VALUES, nn.ReLU()], ids=lambda value: type(value).__name__)
def test_what_is_no_module_and_no_optimiser_is_refused(value):
    layer = UnitaryLinear(2, 2)
    for call in (
        projunn_step,
        retract_,
        attach,
        ProjUNN,
        lambda x: attach(layer, x) if x is not None else None,
        lambda x: setattr(layer, "update", x),
    ):
        assert survived("options", lambda call=call: call(value), layer) is None


def test_an_optimiser_does_not_take_absurd_options_from_a_checkpoint():
    optimizer = ProjUNN(UnitaryLinear(2, 2).parameters())
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"expected lr >= 0 and finite, got -1\.0"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 1e-3
