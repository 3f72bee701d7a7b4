"""The development of a path: a unitary matrix that tells its shape."""

from .development import UnitaryDevelopment as UnitaryDevelopment
