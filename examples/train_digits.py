"""Trains a small net on the 1,797 handwritten digits that come with scikit-learn.

    python examples/train_digits.py --plot digits.png
    python examples/train_digits.py --checkpoint digits.hdf
    python examples/train_digits.py --resume digits.hdf     # after Ctrl-C or a crash
    python examples/train_digits.py --device cuda           # or cpu; the default is CUDA if it is available

A digit has 8x8 pixels, which are 64 inputs of the net. Half of the training digits are shifted at random by up to a pixel,
all get a little noise, and the learning rate decays to zero along a cosine. All random numbers depend only on the seed, the
epoch and the batch, so a resumed run gives the same bits as an uninterrupted one. The last line of the output is the
accuracy on the test digits, which are used for nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import signal
import sys
import time
from dataclasses import asdict, dataclass, field

import numpy as np

from puzzlelib_rmsprop import Config, RMSPropGraves, errors, gpuarray
from puzzlelib_rmsprop.checkpoint import atomicFile, opened
from puzzlelib_rmsprop.nets import Activation, CrossEntropy, Linear, Sequential, relu

try:
    from sklearn.datasets import load_digits
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"{error.name} is missing; pip install 'scikit-learn>=1.2' 'matplotlib>=3.6' 'tqdm>=4.60'")

LEARN_RATE = 1e-3
LAYERS = (64, 256, 128, 10)
TEST, VALIDATION = 360, 180
NOISE = 0.1


# --------------------------------------------------------------------------------------------- the data


@dataclass
class Digits:
    """Images (n, 64) float32 from 0 to 1 and labels (n,) int32, split at random."""

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def load(seed: int) -> Digits:
    images, labels = load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)
    order = np.random.default_rng(seed).permutation(len(images))
    cuts = np.split(order, [TEST, TEST + VALIDATION])
    test, validation, train = ((images[part], labels[part]) for part in cuts)
    return Digits(train, validation, test)


def augmented(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the images with noise, half of them shifted by up to a pixel in each direction."""
    padded = np.pad(images.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (8, 8), axis=(1, 2))
    down, right = rng.integers(0, 3, (2, len(images)))
    shifted = windows[np.arange(len(images)), down, right].reshape(-1, 64)
    images = np.where(rng.random((len(images), 1)) < 0.5, shifted, images)
    return images + NOISE * rng.standard_normal(images.shape, dtype=np.float32)


def batches(data: tuple[np.ndarray, np.ndarray], size: int, seed: int, epoch: int):
    """Yields the batches of an epoch. A batch depends only on the seed, the epoch and its number."""
    images, labels = data
    order = np.random.default_rng([seed, epoch]).permutation(len(images))
    for number, start in enumerate(range(0, len(images), size)):
        part = order[start : start + size]
        rng = np.random.default_rng([seed, epoch, number])
        yield augmented(images[part], rng), labels[part]


# --------------------------------------------------------------------------------------------- the net


def build(seed: int) -> Sequential:
    np.random.seed(seed)
    net = Sequential()
    for number, (insize, outsize) in enumerate(itertools.pairwise(LAYERS)):
        if number:
            net.append(Activation(relu))
        net.append(Linear(insize, outsize, initscheme="he", name=f"fc{number}"))
    return net


def measure(net: Sequential, data: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """Returns the loss and the accuracy of the net on a data set."""
    cost = CrossEntropy()
    scores, labels = net(gpuarray.to_gpu(data[0])), gpuarray.to_gpu(data[1])
    loss, _ = cost(scores, labels)
    return loss, cost.accuracy(scores, labels)


def learn_rate(epoch: int, epochs: int) -> float:
    return LEARN_RATE * (1 + math.cos(math.pi * epoch / epochs)) / 2


# ------------------------------------------------------------------------------------------- the training


@dataclass
class Run:
    """The settings and the progress of a run, which a checkpoint holds in addition to the net and the optimizer."""

    seed: int
    epochs: int
    batch_size: int
    state_dtype: str | None = None
    epoch: int = 0
    # progress within the epoch
    batch: int = 0
    loss_sum: float = 0.0
    right: int = 0
    seen: int = 0
    history: dict[str, list[float]] = field(
        default_factory=lambda: {"loss": [], "accuracy": [], "val_loss": [], "val_accuracy": []}
    )


def save(path: str, run: Run, net: Sequential, optimizer: RMSPropGraves) -> None:
    with atomicFile(path) as file:
        net.save(file)
        optimizer.save(file)
        file["run"] = json.dumps(asdict(run))


def resume(path: str, args: argparse.Namespace) -> Run:
    with opened(path, "r") as file:
        if "run" not in file:
            raise errors.CheckpointError(f"{path} is not a checkpoint of this script: it has no 'run'")
        run = Run(**json.loads(file["run"][()]))
    for name in ("seed", "batch_size", "state_dtype"):
        asked = getattr(args, name)
        if asked is not None and asked != getattr(run, name):
            raise errors.CheckpointError(
                f"{path} is a run with --{name.replace('_', '-')} {getattr(run, name)}, not {asked}"
            )
    run.epochs = args.epochs or run.epochs
    return run


class Interrupt:
    """Makes the first Ctrl-C stop the training after the current batch; the second one stops at once."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGINT, self._request)

    def _request(self, *_: object) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


def train(run: Run, net: Sequential, optimizer: RMSPropGraves, digits: Digits, checkpoint: str | None) -> bool:
    """Trains from the progress of ``run`` on; returns False if it was interrupted."""
    cost, interrupt = CrossEntropy(), Interrupt()
    per_epoch = -(-len(digits.train[0]) // run.batch_size)
    with tqdm(total=run.epochs * per_epoch, initial=run.epoch * per_epoch + run.batch, unit="batch", disable=None) as bar:
        while run.epoch < run.epochs:
            optimizer.learnRate = learn_rate(run.epoch, run.epochs)
            bar.set_description(f"epoch {run.epoch + 1}/{run.epochs}")
            for number, (images, labels) in enumerate(batches(digits.train, run.batch_size, run.seed, run.epoch)):
                if number < run.batch:
                    continue
                scores, target = net(gpuarray.to_gpu(images)), gpuarray.to_gpu(labels)
                loss, grad = cost(scores, target)
                optimizer.zeroGradParams()
                net.backward(grad)
                optimizer.update()
                run.batch += 1
                run.loss_sum += loss * len(labels)
                run.right += round(cost.accuracy(scores, target) * len(labels))
                run.seen += len(labels)
                bar.update()
                bar.set_postfix(loss=f"{run.loss_sum / run.seen:.3f}", accuracy=f"{run.right / run.seen:.3f}", refresh=False)
                if interrupt.requested:
                    return False
            val_loss, val_accuracy = measure(net, digits.validation)
            row = (run.loss_sum / run.seen, run.right / run.seen, val_loss, val_accuracy)
            for name, value in zip(run.history, row, strict=True):
                run.history[name].append(value)
            run.epoch, run.batch, run.loss_sum, run.right, run.seen = run.epoch + 1, 0, 0.0, 0, 0
            line = "epoch %2d/%d  loss %.3f  accuracy %.3f  validation loss %.3f  accuracy %.3f"
            bar.write(line % (run.epoch, run.epochs, *row), file=sys.stdout)
            if checkpoint:
                save(checkpoint, run, net, optimizer)
    return True


def plot(path: str, run: Run, test_accuracy: float) -> None:
    """Draws loss and accuracy against the epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    epochs = range(1, len(run.history["loss"]) + 1)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    left.plot(epochs, run.history["loss"], label="training (shifted, with noise)")
    left.plot(epochs, run.history["val_loss"], label="validation")
    left.set(title="Loss", xlabel="epoch", ylabel="cross entropy", yscale="log")
    right.plot(epochs, run.history["accuracy"], label="training (shifted, with noise)")
    right.plot(epochs, run.history["val_accuracy"], label="validation")
    right.axhline(test_accuracy, color="gray", linestyle="--", label=f"test, after training: {test_accuracy:.4f}")
    right.set(title="Accuracy", xlabel="epoch", ylabel="share of digits", ylim=(min(0.9, *run.history["accuracy"], 1), 1))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"Handwritten digits, RMSPropGraves, seed {run.seed}")
    figure.savefig(path, dpi=120)


# ------------------------------------------------------------------------------------------ the comparison


def compare(run: Run, digits: Digits) -> float | None:
    """Repeats the run with PyTorch's RMSprop; returns its test accuracy, None if PyTorch is not installed."""
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed, so there is no comparison: pip install torch")
        return None
    layers: list[torch.nn.Module] = []
    for number, module in enumerate(m for m in build(run.seed).graph if isinstance(m, Linear)):
        if number:
            layers.append(torch.nn.ReLU())
        linear = torch.nn.Linear(*module.W.shape)
        linear.weight.data = torch.from_numpy(module.W.get().T.copy())
        linear.bias.data = torch.from_numpy(module.b.get())
        layers.append(linear)
    net = torch.nn.Sequential(*layers)
    # PyTorch adds epsilon outside the root, Graves inside
    optimizer = torch.optim.RMSprop(
        net.parameters(), lr=LEARN_RATE, alpha=0.95, eps=math.sqrt(1e-4), momentum=0.9, centered=True
    )
    for epoch in range(run.epochs):
        optimizer.param_groups[0]["lr"] = learn_rate(epoch, run.epochs)
        for images, labels in batches(digits.train, run.batch_size, run.seed, epoch):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(torch.from_numpy(images)), torch.from_numpy(labels).long())
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        best = net(torch.from_numpy(digits.test[0])).argmax(1).numpy()
    return float((best == digits.test[1]).mean())


# -------------------------------------------------------------------------------------------- command line


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])

    def positive(text: str) -> int:
        value = int(text)
        if value < 1:
            raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
        return value

    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--global-state", dest="global_state", action="store_true", help="put all variables into flat buffers (default)"
    )
    mode.add_argument(
        "--local-state", dest="global_state", action="store_false", help="leave each variable in its own memory"
    )
    parser.set_defaults(global_state=True)
    devices = [backend.value for backend in Config.Backend]
    parser.add_argument("--device", choices=devices, default="auto", help="device (default: auto, CUDA if available)")
    parser.add_argument("--epochs", type=positive, help="number of epochs (default: 30 or the checkpoint's)")
    parser.add_argument("--batch-size", type=positive, help="digits per batch (default: 32)")
    parser.add_argument("--seed", type=int, help="random seed (default: 0)")
    parser.add_argument(
        "--state-dtype", choices=["bfloat16", "int8"], help="data type of the optimizer state (default: float32)"
    )
    parser.add_argument("--checkpoint", metavar="PATH", help="save a checkpoint to this file after each epoch")
    parser.add_argument("--resume", metavar="PATH", help="continue from this checkpoint and keep saving to it")
    parser.add_argument("--plot", metavar="PATH", help="draw loss and accuracy to this PNG file")
    parser.add_argument("--compare", action="store_true", help="repeat the run with PyTorch's RMSprop")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    Config.backend = Config.Backend(args.device)
    new = Run(args.seed or 0, args.epochs or 30, args.batch_size or 32, args.state_dtype)
    run = resume(args.resume, args) if args.resume else new
    checkpoint = args.checkpoint or args.resume
    digits, net = load(run.seed), build(run.seed)
    optimizer = RMSPropGraves(learnRate=LEARN_RATE, stateDtype=run.state_dtype, seed=run.seed)
    optimizer.setupOn(net, useGlobalState=args.global_state)
    if args.resume:
        net.load(args.resume)
        optimizer.load(args.resume)
    size, count = net.numOfParams(), len(digits.train[0])
    print(f"Training a net with {size:,} parameters on {count:,} handwritten digits, seed {run.seed}")
    if args.resume:
        done = run.epoch >= run.epochs
        what = (
            f"no epoch left (of {run.epochs}; --epochs takes more) in the run"
            if done
            else f"continuing in epoch {run.epoch + 1}"
        )
        print(f"{what} from {args.resume}")

    start = time.perf_counter()
    finished = train(run, net, optimizer, digits, checkpoint)
    seconds = time.perf_counter() - start
    _, accuracy = measure(net, digits.test)
    if not finished:
        checkpoint = checkpoint or "digits-interrupted.hdf"
        save(checkpoint, run, net, optimizer)
        print(f"interrupted in epoch {run.epoch + 1}; continue with --resume {checkpoint}")
    if args.plot and run.history["loss"]:
        plot(args.plot, run, accuracy)
        print(f"plot: {args.plot}")
    if checkpoint:
        print(f"checkpoint: {checkpoint}")
    if args.compare and finished:
        start = time.perf_counter()
        peer = compare(run, digits)
        if peer is not None:
            print(f"PyTorch RMSprop: test accuracy {peer:.4f} in {time.perf_counter() - start:.1f} s;", end="")
            print(f" here {accuracy:.4f} in {seconds:.1f} s")
    print(f"test accuracy: {accuracy:.4f}")
    return 0 if finished else 130


if __name__ == "__main__":
    try:
        sys.exit(main())
    except errors.Error as error:
        sys.exit(f"{type(error).__name__}: {error}")
