"""Whole models of torchvision, timm and torch, in small sizes: converted, trained, saved, exported and reverted."""

import io
import warnings

import pytest
import timm
import torch
import torchvision
from closeness import assert_rounding
from torch import Tensor, nn

from unitary_layers import attach, convert, revert
from unitary_layers.testing import assert_unitary

CLASSES = 4


class Translator(nn.Module):
    """torch's Transformer, which has a fast path in evaluation, as a function of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(16, 2, 2, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.transformer(x, x[:, :-1])[:, -1])


def torchvision_vit() -> nn.Module:
    sizes = {"image_size": 16, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    return torchvision.models.VisionTransformer(**sizes, num_classes=CLASSES)


def of_timm(name: str, **sizes) -> nn.Module:
    return timm.create_model(name, num_classes=CLASSES, **sizes)


# A model, the shape of its input, and how many layers are converted.
MODELS = {
    "torchvision-vit": (torchvision_vit, (2, 3, 16, 16), 10),
    "timm-resnet": (lambda: of_timm("resnet18", channels=(8, 8, 16, 16)), (2, 3, 32, 32), 22),
    "timm-vit": (
        lambda: of_timm("vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2),
        (2, 3, 16, 16),
        10,
    ),
    "timm-convnext": (
        lambda: of_timm("convnext_atto", dims=(8, 8, 16, 16), depths=(1, 1, 1, 1)),
        (2, 3, 32, 32),
        17,
    ),
    "torch-transformer": (Translator, (2, 5, 16), 21),
}


def trained(model: nn.Module, x: Tensor, steps: int) -> nn.Module:
    """The model after steps of AdamW, in evaluation mode."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    attach(model, optimizer)
    for _ in range(steps):
        nn.functional.cross_entropy(model(x), torch.arange(len(x))).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize(("make", "shape", "count"), MODELS.values(), ids=MODELS)
def test_a_model_is_converted_trained_saved_exported_and_reverted(make, shape, count):
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    kinds, names = [type(m) for m in model.modules()], list(model.state_dict())
    report = convert(model)
    assert len(report.converted) == count == len(report), report
    assert set(names) <= set(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = trained(model, x, steps=10)(x)
    assert_unitary(model)

    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    loaded = make()
    convert(loaded, start="init")
    loaded.load_state_dict(torch.load(buffer))
    assert torch.equal(loaded.eval()(x), y)

    with torch.no_grad():  # where torch may read the weights and call none of the layers
        assert_rounding(model(x), y, n=500)
    assert_rounding(torch.export.export(model, (x,)).module()(x), y, n=500)

    revert(model)
    assert [type(m) for m in model.modules()] == kinds
    assert list(model.state_dict()) == names
    assert_rounding(model(x), y, n=500)
    loaded = make()
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded.eval()(x), model(x))
