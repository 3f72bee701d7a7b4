"""What examples/benchmarks/learning.py trains: tasks, and contenders that move their unitary weights."""

from collections.abc import Callable

from . import graphs, images, sequences
from .task import ACCURACY, SQUARES, Metric, Task

TASKS: dict[str, Callable[..., Task]] = {
    "mlp": images.mlp,
    "deep": images.deep,
    "autoencoder": images.autoencoder,
    "pixels": sequences.pixels,
    "vowels": sequences.vowels,
    "copying": sequences.copying,
    "adding": sequences.adding,
    "conv": images.conv,
    "kernels": images.kernels,
    "vit": images.vit,
    "characters": sequences.characters,
    "minesweeper": graphs.minesweeper,
}
METRICS: dict[str, Metric] = dict.fromkeys(TASKS, ACCURACY) | {
    "autoencoder": SQUARES,
    "copying": sequences.RECALL,
    "adding": SQUARES,
    "characters": sequences.BITS,
    "minesweeper": graphs.AREA,
}
