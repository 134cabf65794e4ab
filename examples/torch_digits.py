"""Trains a small PyTorch net on the 1,797 handwritten digits that come with scikit-learn.

    python examples/torch_digits.py --plot digits.png

Only two lines differ from any other PyTorch script: the import of RMSpropGraves and the creation of the optimizer. The
split, the layers and the augmentation are those of examples/train_digits.py. The last line of the output is the accuracy
on the test digits, which are used for nothing else.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys

try:
    import torch
    from sklearn.datasets import load_digits
    from torch import nn
except ImportError as error:
    sys.exit(f"{error.name} is missing; this example needs: pip install 'torch>=2.6' scikit-learn matplotlib")

import numpy as np

from puzzlelib_rmsprop.torch import RMSpropGraves

LEARN_RATE = 1e-3
BATCH_SIZE = 32
TEST, VALIDATION = 360, 180
NOISE = 0.1


def load(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns test, validation and training digits: images (n, 64) float32 from 0 to 1 and labels (n,) int64."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    pixels, classes = torch.from_numpy(images / 16).float(), torch.from_numpy(labels).long()
    return [(pixels[part], classes[part]) for part in np.split(order, [TEST, TEST + VALIDATION])]


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Returns the images with noise, half of them shifted by up to a pixel in each direction."""
    windows = nn.functional.pad(images.view(-1, 8, 8), (1, 1, 1, 1)).unfold(1, 8, 1).unfold(2, 8, 1)
    down, right = torch.randint(0, 3, (2, len(images)))
    shifted = windows[torch.arange(len(images)), down, right].reshape(-1, 64)
    return torch.where(torch.rand(len(images), 1) < 0.5, shifted, images) + NOISE * torch.randn_like(images)


def measure(net: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> tuple[float, float]:
    """Returns the loss and the accuracy of the net on a data set."""
    images, labels = data
    with torch.no_grad():
        scores = net(images)
        return nn.functional.cross_entropy(scores, labels).item(), (scores.argmax(1) == labels).float().mean().item()


def plot(path: str, history: list[tuple[float, float, float, float]], test_accuracy: float) -> None:
    """Draws loss and accuracy against the epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    epochs = range(1, len(history) + 1)
    loss, accuracy, val_loss, val_accuracy = zip(*history, strict=True)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    left.plot(epochs, loss, label="training (shifted, with noise)")
    left.plot(epochs, val_loss, label="validation")
    left.set(title="Loss", xlabel="epoch", ylabel="cross entropy", yscale="log")
    right.plot(epochs, accuracy, label="training (shifted, with noise)")
    right.plot(epochs, val_accuracy, label="validation")
    right.axhline(test_accuracy, color="gray", linestyle="--", label=f"test, after training: {test_accuracy:.4f}")
    right.set(title="Accuracy", xlabel="epoch", ylabel="share of digits", ylim=(min(0.9, *accuracy), 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle("Handwritten digits in PyTorch, RMSpropGraves")
    figure.savefig(path, dpi=120)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])

    def positive(text: str) -> int:
        value = int(text)
        if value < 1:
            raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
        return value

    def natural(text: str) -> int:
        if int(text) < 0:
            raise argparse.ArgumentTypeError(f"must be at least 0, not {text}")
        return int(text)

    parser.add_argument("--epochs", type=positive, default=30, help="number of epochs (default: 30)")
    parser.add_argument("--seed", type=natural, default=0, help="random seed (default: 0)")
    parser.add_argument(
        "--state-dtype", choices=["bfloat16", "int8"], help="data type of the optimizer state (default: float32)"
    )
    parser.add_argument("--plot", metavar="PATH", help="draw loss and accuracy to this PNG file")
    args = parser.parse_args()
    if args.plot and not os.path.isdir(folder := os.path.dirname(args.plot) or "."):
        parser.error(f"--plot {args.plot}: there is no folder {folder}")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        parser.exit(1, "matplotlib is missing, which --plot needs: pip install matplotlib\n")
    return args


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    test, validation, train = load(args.seed)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = RMSpropGraves(net.parameters(), lr=LEARN_RATE, state_dtype=args.state_dtype)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    size = sum(p.numel() for p in net.parameters())
    print(f"Training a net with {size:,} parameters on {len(train[0]):,} handwritten digits, seed {args.seed}")

    history = []
    for epoch in range(1, args.epochs + 1):
        total, right = 0.0, 0
        for part in torch.randperm(len(train[0])).split(BATCH_SIZE):
            images, labels = augmented(train[0][part]), train[1][part]
            scores = net(images)
            loss = nn.functional.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(part)
            right += (scores.argmax(1) == labels).sum().item()
        scheduler.step()
        history.append((total / len(train[0]), right / len(train[0]), *measure(net, validation)))
        line = "epoch %2d/%d  loss %.3f  accuracy %.3f  validation loss %.3f  accuracy %.3f"
        print(line % (epoch, args.epochs, *history[-1]), flush=True)

    _, accuracy = measure(net, test)
    if args.plot:
        plot(args.plot, history, accuracy)
        print(f"plot: {args.plot}")
    print(f"test accuracy: {accuracy:.4f}")


if __name__ == "__main__":
    main()
