"""The algorithm on operators and matrices, a file a stop of the gradient's journey: gradient, noise, sampling,
rotation, rule. It knows no module, no optimiser and no other machine."""

from .gradient import DenseGradient as DenseGradient
from .gradient import FactoredGradient as FactoredGradient
from .gradient import GradientOperator as GradientOperator
from .rotation import projunn_d as projunn_d
from .rotation import projunn_t as projunn_t
from .rule import UpdateRule as UpdateRule
from .sampling import low_rank as low_rank
