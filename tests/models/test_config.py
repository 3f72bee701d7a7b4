"""What a model was told comes back from timm's config file, for every registered name and every option."""

import functools
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from registered import NAMES, every_model, make
from timm.models import save_for_hf
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from unitary_layers import (
    GroupSort,
    OrthogonalConv2d,
    OrthoResNet,
    OrthoViT,
    StiefelConv2d,
    StiefelNet,
    UnitaryLinear,
    UnitaryMultiheadAttention,
    UnitaryPixelRNN,
    UnitaryPixelSSM,
    UpdateRule,
    unitary_weights,
)
from unitary_layers.init import cayley_, haar_

# Where parameters are made, and what acts in training alone: timm leaves them out for its own models too.
LEFT_OUT = {"device", "dtype", "drop_rate"}
RULE = UpdateRule("D", rank=2, lr=0.125, momentum=0.5, off_manifold="raise")
FULL = {"support": "full", "img_size": 8}
COMMON: dict[str, tuple[Any, ...]] = {
    "update": ("D", RULE, UpdateRule(direction="gradient", seed=5), {"rank": 3}),
    "init": ("cayley", cayley_, haar_),
    "in_chans": (2,),
    "num_classes": (0, 7),
    "global_pool": ("avg", "max", "avgmax", "catavgmax", {"global_pool": "", "num_classes": 0}),
}
# What each option of a constructor may be: values, or dicts of it and of what it needs beside it.
OPTIONS: dict[type[nn.Module], dict[str, tuple[Any, ...]]] = {
    OrthoResNet: COMMON
    | {
        "depths": ({"depths": [0, 2, 1], "widths": [8, 32, 128]},),
        "widths": ({"widths": (8, 32)},),
        "stem_width": ({"stem_width": 4, "widths": (16, 64)},),
        "stem_stride": ({"stem_stride": 2, "stem_width": 12, "widths": (48, 192)},),
        "block": ("convex", "free", {"block": "isometry", "bottleneck": 1}),
        "bottleneck": ({"bottleneck": 2, "block": "convex"}, {"bottleneck": 2, "block": "free"}),
        "support": (FULL, "local"),
        "norm_layer": ("batchnorm2d", nn.BatchNorm2d, "layernorm2d", timm.layers.LayerNorm2d),
        "act_layer": ("silu", nn.ELU, GroupSort, "GroupSort", timm.layers.HardSwish),
        "conv_layer": (OrthogonalConv2d, "OrthogonalConv2d"),
        "gradient": ({"gradient": "factored", **FULL},),
        "img_size": (FULL | {"img_size": (8, 4)}, FULL | {"img_size": [4, 8]}),
    },
    StiefelNet: COMMON
    | {
        "depths": ({"depths": [0, 2], "widths": [8, 16]},),
        "widths": ((4, 12),),
        "stem_taps": (3,),
        "norm_layer": ("groupnorm1", timm.layers.LayerNorm2d),
        "act_layer": ("silu", GroupSort),
        "conv_layer": (StiefelConv2d, "Conv2d", nn.Conv2d),
        "operators": (True,),
    },
    UnitaryPixelRNN: COMMON
    | {
        "widths": ((8, 12), [8]),
        "embed_dim": (6,),
        "patch_size": (4,),
        "nonlinearity": ("relu", "tanh"),
        "gradient": ("factored",),
        "global_pool": ("last", *COMMON["global_pool"]),
    },
    UnitaryPixelSSM: COMMON
    | {
        "widths": ({"widths": (8, 12, 4), "block_sizes": (1, 2, 1)},),
        "embed_dim": (6,),
        "block_sizes": ([1], (4,)),
        "decay": (False,),
        "global_pool": ("last", *COMMON["global_pool"]),
    },
    OrthoViT: COMMON
    | {
        "depths": ([1, 0, 2],),
        "embed_dim": (12,),
        "num_heads": (1,),
        "patch_size": (3,),
        "mlp_ratio": (1,),
        "attention_layer": (UnitaryMultiheadAttention, "UnitaryMultiheadAttention"),
        "linear_layer": (UnitaryLinear, "UnitaryLinear"),
        "score": ("born",),
        "img_size": ((8, 4), [4, 8]),
    },
}
TINY: dict[type[nn.Module], dict[str, Any]] = {
    OrthoResNet: {"depths": (1, 0), "widths": (8, 32), "stem_width": 8, "stem_stride": 1, "img_size": 8},
    StiefelNet: {"depths": (1, 0), "widths": (8, 16)},
    UnitaryPixelRNN: {"widths": (8,)},
    UnitaryPixelSSM: {"widths": (8,), "block_sizes": (2,)},
    OrthoViT: {"depths": (1,), "embed_dim": 8, "num_heads": 2, "img_size": 8},
}
KINDS = {name: type(make(name, device="meta")) for name in NAMES}


def cases() -> list[Any]:
    return [
        pytest.param(
            name, value if isinstance(value, dict) and option in value else {option: value}, id=f"{name}-{i}-{option}"
        )
        for name, kind in KINDS.items()
        for option, values in OPTIONS[kind].items()
        for i, value in enumerate(values)
    ]


def tiny(name: str, **options: Any) -> nn.Module:
    return timm.create_model(name, **(TINY[KINDS[name]] | options)).eval()


def loaded(model: nn.Module, folder: Path) -> nn.Module:
    """The model as another process finds it."""
    save_for_hf(model, folder, safe_serialization=True)
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def images(model: nn.Module) -> Tensor:
    return torch.randn(2, model.in_chans, *(getattr(model, "img_size", None) or (8, 8)))


def start_of(model: nn.Module) -> list[Tensor]:
    """What its layers draw."""
    torch.manual_seed(1)
    for module in model.modules():
        if hasattr(module, "reset_unitary"):
            module.reset_parameters()
    return [weight.matrix for weight in unitary_weights(model)]


def assert_the_same(back: nn.Module, model: nn.Module) -> None:
    x = images(model)
    with torch.no_grad():
        assert torch.equal(back(x), model(x))
    kept = [[(w.name, w.declared, w.collected is None) for w in unitary_weights(m)] for m in (back, model)]
    assert kept[0] == kept[1]
    assert [*map(type, back.modules())] == [*map(type, model.modules())]
    assert all(map(torch.equal, start_of(back), start_of(model)))


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_option_is_tried(kind):
    assert set(OPTIONS[kind]) == {*inspect.signature(kind).parameters} - LEFT_OUT


@pytest.mark.parametrize(("name", "options"), cases())
def test_options_come_back(name, options, tmp_path: Path):
    model = tiny(name, **options)
    back = loaded(model, tmp_path)
    assert_the_same(back, model)
    save_config_for_hf(back, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads((tmp_path / "config.json").read_text())


@every_model
def test_what_was_changed_later_comes_back(name, tmp_path: Path):
    model = tiny(name)
    model.reset_classifier(3, "max")
    assert_the_same(loaded(model, tmp_path), model)


@every_model
def test_models_of_the_entry_point_come_back(name, tmp_path: Path):
    """Without ``create_model``, which notes the options too."""
    model = timm.model_entrypoint(name)(**TINY[KINDS[name]], update=RULE, num_classes=4).eval()
    assert_the_same(loaded(model, tmp_path), model)


@pytest.mark.parametrize("act", [functools.partial(nn.LeakyReLU, 0.1), lambda: nn.ReLU()], ids=["partial", "lambda"])
def test_what_has_no_name_is_not_saved_as_something_else(act, tmp_path: Path):
    model = tiny("orthoplain100_projunn", act_layer=act)
    with pytest.raises(ValueError, match="'act_layer' is not serializable"):
        save_for_hf(model, tmp_path)
    save_for_hf(model, tmp_path, model_args={"act_layer": "named when loaded"}, safe_serialization=True)
    back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, act_layer=act).eval()
    assert_the_same(back, model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"act_layer": "relux"}, "expected act_layer to be a class or the name of one in .* got 'relux'"),
        ({"norm_layer": "batchnorm3"}, "expected norm_layer to be a class or the name of one in .* got 'batchnorm3'"),
        (
            {"norm_layer": nn.BatchNorm2d(8)},
            "expected norm_layer to be a class or .* got BatchNorm2d",
        ),
        ({"conv_layer": "Conv9d"}, "expected conv_layer to be a class or the name of one in .* got 'Conv9d'"),
        ({"update": {"ranks": 3}}, "a dict of its options .*'rank'.* got {'ranks': 3}"),
        ({"update": 3}, "a dict of its options .* got 3"),
        ({"update": {"rank": 0}}, "expected rank to be"),
        ({"global_pool": "last"}, "expected global_pool to be one of .*'avg'.* got 'last'"),
    ],
)
def test_options_that_mean_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        tiny("orthoresnet_projunn", **options)
