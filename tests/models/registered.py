"""The list of registered models that every contract test runs over: a new entry point joins it by itself."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import unitary_layers
from unitary_layers import OrthogonalConv2d

# Residual blocks with 3 x 3 taps behind a stem of stride 4, for images of any size: an OrthoResNet that has no name.
LOCAL = {"support": "local", "depths": (1,) * 4, "widths": (64, 128, 256, 512), "stem_stride": 4}
NAMES = tuple(n for n in timm.list_models() if timm.model_entrypoint(n).__module__.startswith(unitary_layers.__name__))
SMALL = 64  # side of the images where a model takes any size
every_model = pytest.mark.parametrize("name", NAMES)


def make(name: str, **options: Any) -> nn.Module:
    """A registered model; convolutions start as the identity, since drawing large Haar matrices takes seconds."""
    start = {} if "pixel" in name else {"init": "identity"}
    return timm.create_model(name, **{"num_classes": 5, **start, **options})


def make_small(name: str, **options: Any) -> nn.Module:
    """The same model with at most one block a stage."""
    depths = [len(stage.blocks) for stage in make(name, device="meta").stages if hasattr(stage, "blocks")]
    layout = {"depths": tuple(min(depth, 1) for depth in depths)} if depths else {}
    return make(name, **layout, **options)


def size_of(name: str) -> tuple[int, int, int]:
    """Channels, height and width of a small image that the model takes."""
    config = timm.get_pretrained_cfg(name)
    channels, height, width = config.input_size
    return config.input_size if config.fixed_input_size else (channels, min(height, SMALL), min(width, SMALL))


def images(name: str, batch: int = 2, seed: int = 3) -> Tensor:
    return torch.randn(batch, *size_of(name), generator=torch.Generator().manual_seed(seed))


def assert_convolutions_are_orthogonal(model: nn.Module, x: Tensor) -> None:
    """Each convolution, or where it has fewer outputs its transpose, keeps the norm of a random signal.

    Tolerance 10 n eps, as in the contract of the layers, with n the channels that a sum runs over.
    """
    shapes: dict[nn.Module, torch.Size] = {}
    layers = [module for module in model.modules() if isinstance(module, OrthogonalConv2d)]
    hooks = [m.register_forward_pre_hook(lambda m, args: shapes.__setitem__(m, args[0].shape[1:])) for m in layers]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        signal = torch.randn(1, *shapes[layer], requires_grad=True)
        response = layer(signal)
        if response.numel() < signal.numel():
            sent = torch.randn_like(response)
            received = torch.autograd.grad(response, signal, sent)[0]
        else:
            sent, received = signal, response if layer.bias is None else response - layer.bias.view(-1, 1, 1)
        n = max(layer.in_channels * layer.stride[0] * layer.stride[1], layer.out_channels)
        ratio = float(received.detach().norm() / sent.detach().norm())
        assert abs(ratio - 1) <= 10 * n * torch.finfo(torch.float32).eps
