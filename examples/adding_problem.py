"""Adding problem: add the two marked numbers of a sequence, with a unitary RNN, an nn.RNN or an nn.LSTM.

TODO
"""

import argparse

from options import parser, prepare
from tasks import AddingProblem
from training import train


def setup(argv: list[str] | None = None) -> tuple[argparse.Namespace, AddingProblem]:
    """Options of one run and its task."""
    options = parser("adding_problem", "Add the two marked numbers of a sequence.", width=170, init="identity")
    options.add_argument("--length", type=int, default=200, help="time steps")
    args = prepare(options.parse_args(argv))
    return args, AddingProblem(length=args.length, batch_size=args.batch_size, seed=args.seed, device=args.device)


def main(argv: list[str] | None = None) -> None:
    train(*setup(argv))


if __name__ == "__main__":
    main()
