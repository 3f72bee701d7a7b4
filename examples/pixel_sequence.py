"""Images read one pixel a step, in order or permuted, with a unitary RNN, an nn.RNN or an nn.LSTM.

Width 170, batch 128, Henaff initialisation and RMSprop follow projUNN (Kiani, Balestriero, LeCun, Lloyd, NeurIPS 2022,
arXiv 2203.05483, Table 2); the unitary weight moves by the layers' default rule. `--direction rmsprop` is the paper's:
RMSprop with 1/32 of the rate and rank 1. Nonlinearity and learning rate differ from the paper's recurrent recipe, the
last command: with `--direction rmsprop` the test accuracy on digits, width 128, after 40 epochs was 95.0 % with modReLU
and 3e-3, 92.2 % with modReLU and 1e-3, 62.5 % with the paper's ReLU and 1e-3. digits (8 x 8, 64 steps) come with
scikit-learn; MNIST and FashionMNIST (28 x 28, 784 steps) are downloaded by torchvision.

    python examples/pixel_sequence.py --images digits --model unitary
    python examples/pixel_sequence.py --images mnist --permute --epochs 200 --out runs/permuted_mnist/unitary
    python examples/report.py runs/permuted_mnist
    python examples/pixel_sequence.py --permute --nonlinearity relu --lr 1e-3 --direction rmsprop --out runs/paper
"""

import argparse
from pathlib import Path

from common.images import IMAGE_SETS, load_images
from common.options import number, parser, prepare
from common.tasks import PixelSequence
from common.training import train


def setup(argv: list[str] | None = None) -> tuple[argparse.Namespace, PixelSequence]:
    """Options of one run and its task."""
    options = parser("pixel_sequence", "Classify images from one pixel a step.", width=170, steps=None)
    options.add_argument("--images", choices=IMAGE_SETS, default="mnist")
    options.add_argument("--permute", action="store_true", help="in one fixed random order of the pixels")
    options.add_argument("--gain", type=number, default=1.0, help="largest grey value of the input")
    options.add_argument("--epochs", type=int, default=100, help="passes over the training images, where no --steps")
    options.add_argument("--data", type=Path, default=Path("data"), help="where MNIST and FashionMNIST are kept")
    args = prepare(options.parse_args(argv))
    source = load_images(args.images, args.data)
    of_run = {"batch_size": args.batch_size, "seed": args.seed, "device": args.device}
    task = PixelSequence(permute=args.permute, gain=args.gain, **of_run, **source)
    if args.steps is None:
        args.steps = args.epochs * task.eval_every
    return args, task


def main(argv: list[str] | None = None) -> None:
    train(*setup(argv))


if __name__ == "__main__":
    main()
