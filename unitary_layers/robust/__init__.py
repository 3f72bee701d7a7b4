"""Certified robustness: how far an input may move, losses that ask for margins, and 1-Lipschitz parts of networks."""

from .activation import AbsActivation as AbsActivation
from .activation import HouseholderActivation as HouseholderActivation
from .bound import lipschitz_bound as lipschitz_bound
from .bracket import boundary_distance as boundary_distance
from .centering import BatchCentering as BatchCentering
from .centering import LayerCentering as LayerCentering
from .certificate import certified_radius as certified_radius
from .certificate import pool_lipschitz as pool_lipschitz
from .linear import UnitNormLinear as UnitNormLinear
from .losses import CertificateRegularizer as CertificateRegularizer
from .losses import LogitAnnealingLoss as LogitAnnealingLoss
from .losses import MarginCrossEntropyLoss as MarginCrossEntropyLoss
from .pooling import NormPool as NormPool
from .pooling import ProjectionPool as ProjectionPool
from .reflect import ReflectBlock as ReflectBlock
from .shift import SpatialShift as SpatialShift
