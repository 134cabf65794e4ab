"""Trains the net of train_digits.py in several processes, each with a part of every batch.

    mpirun -n 2 python examples/train_distributed.py
    mpirun -n 4 python examples/train_distributed.py --shard-state --checkpoint digits.hdf
    mpirun -n 3 python examples/train_distributed.py --shard-state --resume digits.hdf
    mpirun -n 4 python examples/train_distributed.py --nccl     # one GPU per process

The batches are those of a single process, split into one part per process. So the number of processes changes only the
order in which gradients are summed. With --shard-state each process holds only a part of the optimizer state. A
checkpoint can be resumed with another number of processes, with or without --shard-state.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

import numpy as np
from tqdm import tqdm
from train_digits import LEARN_RATE, Run, batches, build, learn_rate, load, measure

from puzzlelib_rmsprop import Config, MPINodeInfo, NCCLNodeInfo, NodeInfo, RMSPropGraves, errors, gpuarray
from puzzlelib_rmsprop.checkpoint import atomicFile, opened
from puzzlelib_rmsprop.nets import CrossEntropy, Sequential


def save(path: str, run: Run, net: Sequential, optimizer: RMSPropGraves) -> None:
    if optimizer.nodeinfo.index == 0:
        with atomicFile(path) as file:
            net.save(file)
            optimizer.save(file)
            file["run"] = json.dumps(asdict(run))
    elif optimizer.shardState:
        optimizer.save(None)  # sends its part to process 0


def train_epoch(
    run: Run, net: Sequential, optimizer: RMSPropGraves, digits: tuple[np.ndarray, np.ndarray], bar: tqdm
) -> None:
    node, cost = optimizer.nodeinfo, CrossEntropy()
    loss_sum = right = seen = 0.0
    for images, labels in batches(digits, run.batch_size, run.seed, run.epoch):
        own = np.array_split(np.arange(len(labels)), node.gridsize)[node.index]
        optimizer.zeroGradParams()
        if len(own):
            scores, target = net(gpuarray.to_gpu(images[own])), gpuarray.to_gpu(labels[own])
            loss, grad = cost(scores, target)
            # so that the mean over the processes is the mean over the batch, even if the parts have different sizes
            grad *= np.float32(len(own) * node.gridsize / len(labels))
            net.backward(grad)
            loss_sum += loss * len(own)
            right += cost.accuracy(scores, target) * len(own)
            seen += len(own)
        optimizer.update()
        bar.update()
    loss_sum, right, seen = (node.meanValue(value) for value in (loss_sum, right, seen))
    run.history["loss"].append(loss_sum / seen)
    run.history["accuracy"].append(right / seen)


def train(run: Run, node: NodeInfo, args: argparse.Namespace) -> float:
    """Trains the net; returns its accuracy on the test digits."""
    digits, net = load(run.seed), build(run.seed)
    optimizer = RMSPropGraves(learnRate=LEARN_RATE, nodeinfo=node, shardState=args.shard_state)
    optimizer.setupOn(net, useGlobalState=True)
    if args.resume:
        net.load(args.resume)
        optimizer.load(args.resume)
    state = sum(array.nbytes for part in optimizer.states.values() for array in part.values())
    first = node.index == 0
    if first:
        kind = "a part of the optimizer state" if args.shard_state else "the optimizer state"
        print(f"Training a net with {net.numOfParams():,} parameters on {len(digits.train[0]):,} handwritten digits")
        print(f"{node.gridsize} processes, each with {kind}: {state:,} bytes", flush=True)
    per_epoch = -(-len(digits.train[0]) // run.batch_size)
    checkpoint = args.checkpoint or args.resume
    with tqdm(
        total=run.epochs * per_epoch, initial=run.epoch * per_epoch, unit="batch", disable=None if first else True
    ) as bar:
        while run.epoch < run.epochs:
            optimizer.learnRate = learn_rate(run.epoch, run.epochs)
            bar.set_description(f"epoch {run.epoch + 1}/{run.epochs}")
            train_epoch(run, net, optimizer, digits.train, bar)
            run.epoch += 1
            val_loss, val_accuracy = measure(net, digits.validation)
            run.history["val_loss"].append(val_loss)
            run.history["val_accuracy"].append(val_accuracy)
            if first:
                row = tuple(values[-1] for values in run.history.values())
                line = "epoch %2d/%d  loss %.3f  accuracy %.3f  validation loss %.3f  accuracy %.3f"
                bar.write(line % (run.epoch, run.epochs, *row), file=sys.stdout)
            if checkpoint:
                save(checkpoint, run, net, optimizer)
    return measure(net, digits.test)[1]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shard-state", action="store_true", help="split the optimizer state among the processes")
    parser.add_argument("--nccl", action="store_true", help="train on GPUs, one per process (default: CPU, with MPI)")
    parser.add_argument("--epochs", type=int, help="number of epochs (default: 30 or the checkpoint's)")
    parser.add_argument("--batch-size", type=int, default=32, help="digits per batch, of all processes (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds to wait for other processes (default: 300)")
    parser.add_argument("--checkpoint", metavar="PATH", help="save a checkpoint to this file after each epoch")
    parser.add_argument("--resume", metavar="PATH", help="continue from this checkpoint and keep saving to it")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    Config.backend = Config.Backend.cuda if args.nccl else Config.Backend.cpu
    Config.numThreads = 1  # the processes share the cores
    run = Run(args.seed, args.epochs or 30, args.batch_size)
    if args.resume:
        with opened(args.resume, "r") as file:
            run = Run(**json.loads(file["run"][()]))
        run.epochs = args.epochs or run.epochs
    with (NCCLNodeInfo if args.nccl else MPINodeInfo)(timeout=args.timeout) as node:
        start = time.perf_counter()
        accuracy = train(run, node, args)
        if node.index == 0:
            if checkpoint := args.checkpoint or args.resume:
                print(f"checkpoint: {checkpoint}")
            print(f"time: {time.perf_counter() - start:.1f} s")
            print(f"test accuracy: {accuracy:.4f}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except errors.DependencyError as error:
        sys.exit(f"{type(error).__name__}: {error}")
