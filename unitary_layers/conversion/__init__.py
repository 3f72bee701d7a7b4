"""Existing models to the layers of this package, and back to torch's own."""

from .convert import convert as convert
from .convert import revert as revert
from .report import Conversion as Conversion
from .report import Report as Report
