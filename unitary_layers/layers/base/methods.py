"""The methods of whatever has unitary weights in its module tree."""

from torch import Tensor, nn

from ...training.step import projunn_step, retract_, unitarity_error_of


class UnitaryMethods(nn.Module):
    """The methods of every layer and model with unitary weights somewhere in its module tree."""

    def projunn_step(self, *, lr_scale: float = 1.0) -> None:
        """Moves the unitary weights by their gradients; see :func:`unitary_layers.projunn_step`."""
        projunn_step(self, lr_scale=lr_scale)

    def unitarity_error(self) -> Tensor:
        """The largest ``|W^H W - I|_F`` (Frobenius norm) among the unitary weights, a tensor ``()``."""
        return unitarity_error_of(self)

    def retract_(self) -> None:
        """Replaces each unitary weight by the nearest unitary one; see :func:`unitary_layers.retract_`."""
        retract_(self)
