"""Copying memory: recall ten symbols after a long delay, with a unitary RNN, an nn.RNN or an nn.LSTM.

The defaults are the recipe of projUNN (Kiani, Balestriero, LeCun, Lloyd, NeurIPS 2022, arXiv 2203.05483): delay 1000,
width 190, batch 128, ReLU, Henaff initialisation, RMSprop with 1e-3, unitary weights with 1/32 of it, rank 1.

    python examples/copying_memory.py --model unitary
    python examples/copying_memory.py --model lstm --resume
    python examples/report.py runs/copying_memory
"""

from options import parser, prepare
from tasks import CopyingMemory
from training import train


def main(argv: list[str] | None = None) -> None:
    options = parser("copying_memory", "Recall ten symbols after a long delay.", width=190)
    options.add_argument("--delay", type=int, default=1000, help="blanks between the symbols and their recall")
    args = prepare(options.parse_args(argv))
    train(args, CopyingMemory(delay=args.delay, batch_size=args.batch_size, seed=args.seed, device=args.device))


if __name__ == "__main__":
    main()
