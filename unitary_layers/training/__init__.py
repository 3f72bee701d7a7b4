"""How the weights of modules take the step of ``projunn``: what is trained (weight, owners, watch), what steps together
(reduced, batch), gradients of many machines (parallel) and gathered in backward (factored), the one writer of weights
(step), and who asks for the step (triggers)."""

from .factored.amp import use_grad_scaler as use_grad_scaler
from .parallel.comm_hook import ThinProducts as ThinProducts
from .parallel.comm_hook import thin_products_hook as thin_products_hook
from .parallel.shared import share_gradients as share_gradients
from .step import drop_gradients as drop_gradients
from .step import projunn_step as projunn_step
from .step import retract_ as retract_
from .step import unitarity_error_of as unitarity_error_of
from .triggers.attach import AttachHandle as AttachHandle
from .triggers.attach import attach as attach
from .triggers.optimizer import ProjUNN as ProjUNN
from .triggers.optimizer import register_with_timm as register_with_timm
from .weight import UnitaryWeight as UnitaryWeight
from .weight import unitary_weights as unitary_weights
