"""Images read one pixel a step, in order or permuted, with a unitary RNN, an nn.RNN or an nn.LSTM.

The defaults follow projUNN (Kiani, Balestriero, LeCun, Lloyd, NeurIPS 2022, arXiv 2203.05483, Table 2): width 170,
batch 128, Henaff initialisation, RMSprop, rank 1. digits (8 x 8, 64 steps) come with scikit-learn; MNIST and
FashionMNIST (28 x 28, 784 steps) are downloaded by torchvision.

    python examples/pixel_sequence.py --images digits --model unitary
    python examples/pixel_sequence.py --images mnist --permute --epochs 200 --out runs/permuted_mnist/unitary
"""

from pathlib import Path

from images import IMAGE_SETS, load_images
from options import parser, prepare
from tasks import PixelSequence
from training import train


def main(argv: list[str] | None = None) -> None:
    options = parser("pixel_sequence", "Classify images from one pixel a step.", width=170, steps=None)
    options.add_argument("--images", choices=IMAGE_SETS, default="mnist")
    options.add_argument("--permute", action="store_true", help="in one fixed random order of the pixels")
    options.add_argument("--epochs", type=int, default=100, help="passes over the training images, where no --steps")
    options.add_argument("--data", type=Path, default=Path("data"), help="where MNIST and FashionMNIST are kept")
    args = prepare(options.parse_args(argv))
    source = load_images(args.images, args.data)
    task = PixelSequence(permute=args.permute, batch_size=args.batch_size, seed=args.seed, device=args.device, **source)
    if args.steps is None:
        args.steps = args.epochs * task.eval_every
    train(args, task)


if __name__ == "__main__":
    main()
