"""Adding problem: add the two marked numbers of a sequence, with a unitary RNN, an nn.RNN or an nn.LSTM.

The defaults are the recipe of projUNN (Kiani, Balestriero, LeCun, Lloyd, NeurIPS 2022, arXiv 2203.05483): 200 steps,
width 170, batch 128, ReLU, identity initialisation, RMSprop with 1e-3, unitary weights with 1/32 of it, rank 1.

    python examples/adding_problem.py --model unitary
    python examples/adding_problem.py --model rnn --length 750 --out runs/adding_750/rnn
"""

from options import parser, prepare
from tasks import AddingProblem
from training import train


def main(argv: list[str] | None = None) -> None:
    options = parser("adding_problem", "Add the two marked numbers of a sequence.", width=170, init="identity")
    options.add_argument("--length", type=int, default=200, help="time steps")
    args = prepare(options.parse_args(argv))
    train(args, AddingProblem(length=args.length, batch_size=args.batch_size, seed=args.seed, device=args.device))


if __name__ == "__main__":
    main()
