"""The algorithm, a file a stop of the gradient's journey: gradient, moments, sampling, rotation, rule,
weight, owners, watch, distributed, once, collect, batch, comm_hook, amp, hook, rates, host, attach."""

from .amp import use_grad_scaler as use_grad_scaler
from .attach import AttachHandle as AttachHandle
from .attach import attach as attach
from .comm_hook import ThinProducts as ThinProducts
from .comm_hook import thin_products_hook as thin_products_hook
from .distributed import share_gradients as share_gradients
from .gradient import DenseGradient as DenseGradient
from .gradient import FactoredGradient as FactoredGradient
from .gradient import GradientOperator as GradientOperator
from .hook import drop_gradients as drop_gradients
from .hook import projunn_step as projunn_step
from .hook import retract_ as retract_
from .hook import unitarity_error_of as unitarity_error_of
from .rotation import projunn_d as projunn_d
from .rotation import projunn_t as projunn_t
from .rule import UpdateRule as UpdateRule
from .sampling import low_rank as low_rank
from .weight import UnitaryWeight as UnitaryWeight
from .weight import unitary_weights as unitary_weights
