"""Adding problem: add the two marked numbers of a sequence, with a unitary RNN, an nn.RNN or an nn.LSTM.

Length 200, width 170 and RMSprop follow projUNN (Kiani, Balestriero, LeCun, Lloyd, NeurIPS 2022, arXiv 2203.05483); the
unitary weight moves by the layers' default rule. `--direction rmsprop` is the paper's: RMSprop with 1/32 of the rate
and rank 1. Nonlinearity, initialisation, rate and clipping differ from the paper's recipe, the last command (ReLU,
identity, 1e-3, none): with `--direction rmsprop` at length 200, width 96, batch 64, the loss after 2,500 steps was
0.067 with the others as they are here and 0.164, hardly below that of a constant answer, with the identity instead of
Henaff's rotations or with a rate of 1e-2. Factored gradients have no norm to clip, and are not clipped.

    python examples/adding_problem.py --model unitary
    python examples/adding_problem.py --model lstm
    python examples/report.py runs/adding_problem
    python examples/adding_problem.py --nonlinearity relu --init identity --lr 1e-3 --clip none \\
        --direction rmsprop --out runs/paper
"""

import argparse

from common.options import number, parser, prepare
from common.tasks import AddingProblem
from common.training import train


def setup(argv: list[str] | None = None) -> tuple[argparse.Namespace, AddingProblem]:
    """Options of one run and its task."""
    options = parser("adding_problem", "Add the two marked numbers of a sequence.", width=170, steps=6000, clip=1.0)
    options.add_argument("--length", type=int, default=200, help="time steps")
    options.add_argument("--centre", type=number, default=0.0, help="taken off the numbers before they are read")
    if options.parse_args(argv).gradient == "factored":
        options.set_defaults(clip=None)
    args = prepare(options.parse_args(argv))
    of_run = {"batch_size": args.batch_size, "seed": args.seed, "device": args.device}
    return args, AddingProblem(length=args.length, centre=args.centre, **of_run)


def main(argv: list[str] | None = None) -> None:
    train(*setup(argv))


if __name__ == "__main__":
    main()
