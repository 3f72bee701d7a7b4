"""Which layer of this package takes the place of which of torch's, and with which arguments."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..layers import (
    OrthogonalConv1d,
    OrthogonalConv2d,
    OrthogonalConv3d,
    StiefelConv1d,
    StiefelConv2d,
    StiefelConv3d,
    StiefelConvTranspose1d,
    StiefelConvTranspose2d,
    StiefelConvTranspose3d,
    UnitaryLinear,
    UnitaryModule,
    UnitaryMultiheadAttention,
    UnitaryRNN,
    UnitaryRNNCell,
)


@dataclass(frozen=True)
class Kind:
    """A layer of torch and what takes its place.

    Attributes:
        plain: torch's class.
        ours: the class of this package.
        names: arguments of both, which are attributes of the layer too.
        flags: arguments that say whether a parameter is there, and the parameter.
    """

    plain: type[nn.Module]
    ours: type[UnitaryModule]
    names: tuple[str, ...]
    flags: Mapping[str, str] = field(default_factory=dict)

    def arguments(self, layer: nn.Module) -> dict[str, Any]:
        """The arguments that make a layer like this one, of either class."""
        given = {name: getattr(layer, name) for name in self.names}
        return given | {name: getattr(layer, parameter) is not None for name, parameter in self.flags.items()}


BIAS = {"bias": "bias"}
CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
RNN = ("input_size", "hidden_size", "bias", "nonlinearity")
ATTENTION = ("embed_dim", "num_heads", "dropout", "add_zero_attn", "kdim", "vdim", "batch_first")
LAYERS = (
    Kind(nn.Linear, UnitaryLinear, ("in_features", "out_features"), BIAS),
    Kind(nn.RNN, UnitaryRNN, (*RNN, "num_layers", "batch_first", "dropout", "bidirectional")),
    Kind(nn.RNNCell, UnitaryRNNCell, RNN),
    Kind(
        nn.MultiheadAttention,
        UnitaryMultiheadAttention,
        ATTENTION,
        {"bias": "in_proj_bias", "add_bias_kv": "bias_k"},
    ),
    Kind(nn.Conv1d, StiefelConv1d, CONV, BIAS),
    Kind(nn.Conv2d, StiefelConv2d, CONV, BIAS),
    Kind(nn.Conv3d, StiefelConv3d, CONV, BIAS),
    Kind(nn.ConvTranspose1d, StiefelConvTranspose1d, (*CONV, "output_padding"), BIAS),
    Kind(nn.ConvTranspose2d, StiefelConvTranspose2d, (*CONV, "output_padding"), BIAS),
    Kind(nn.ConvTranspose3d, StiefelConvTranspose3d, (*CONV, "output_padding"), BIAS),
)
PERIODIC = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups")  # the padding is their own
ISOMETRIES = (
    Kind(nn.Conv1d, OrthogonalConv1d, PERIODIC, BIAS),
    Kind(nn.Conv2d, OrthogonalConv2d, PERIODIC, BIAS),
    Kind(nn.Conv3d, OrthogonalConv3d, PERIODIC, BIAS),
)
BY_PLAIN = {kind.plain: kind for kind in LAYERS}
BY_OURS = {kind.ours: kind for kind in (*LAYERS, *ISOMETRIES)}
# The output projection of torch's attention: nn.Linear by another name, for the sake of quantisation.
BY_PLAIN[NonDynamicallyQuantizableLinear] = BY_PLAIN[nn.Linear]
ISOMETRY_OF = {kind.plain: kind for kind in ISOMETRIES}
WITHOUT_COUNTERPART = (nn.RNNBase, nn.RNNCellBase, nn.Bilinear, nn.Embedding, nn.EmbeddingBag)
MATRICES = (*BY_PLAIN, *WITHOUT_COUNTERPART)  # the layers of torch that hold matrices


def built(cls: type[nn.Module], arguments: dict[str, Any], **options: Any) -> nn.Module:
    """A layer, without the warnings that the one it is made after has given already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cls(**arguments, **options)
