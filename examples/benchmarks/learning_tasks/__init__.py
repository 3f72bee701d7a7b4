"""What examples/benchmarks/learning.py trains: tasks, and contenders that move their unitary weights."""

from collections.abc import Callable

from . import images
from .task import ACCURACY, Metric, Task

TASKS: dict[str, Callable[..., Task]] = {"mlp": images.mlp}
METRICS: dict[str, Metric] = dict.fromkeys(TASKS, ACCURACY)
