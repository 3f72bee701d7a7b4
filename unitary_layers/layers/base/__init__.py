"""What every layer shares: how its weights are stored, found, loaded, moved and used in a forward pass."""

from .methods import UnitaryMethods as UnitaryMethods
from .module import UnitaryModule as UnitaryModule
