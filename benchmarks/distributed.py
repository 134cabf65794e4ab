"""Measures training in several processes of this machine, with this library and with PyTorch.

    python -m benchmarks.distributed --ranks 1 2 4 --json benchmarks/results/NAME.json

Needs mpi4py, an MPI library and, for the peers, torch. Each process has one thread and its own batch. An iteration zeroes
the gradients, runs the net forward and backward, averages the gradients and updates. "Alone" is the same in all processes at
once without a process group, so the difference is the cost of the group.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NETS = {"digits": (64, 256, 128, 10), "wide": (784, 2048, 2048, 10)}
BATCH, LEARN_RATE = 32, 1e-4


class Member(NamedTuple):
    """A process of a group: ``gather`` collects a number of each process, ``digest`` is a sum over the parameters."""

    index: int
    iterations: dict[str, Callable[[], None]]  # "together", "alone"
    barrier: Callable[[], Any]
    gather: Callable[[float], list[float]]
    digest: Callable[[], float]
    state_bytes: int
    close: Callable[[], Any]


def batch(layers: tuple[int, ...], index: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(index)
    return rng.standard_normal((BATCH, layers[0])).astype(np.float32), rng.integers(0, layers[-1], BATCH)


def ours(layers: tuple[int, ...], sharded: bool) -> Member:
    from puzzlelib_rmsprop import Config, MPINodeInfo, RMSPropGraves, gpuarray
    from puzzlelib_rmsprop.nets import Activation, CrossEntropy, Linear, Sequential, relu

    Config.backend, Config.numThreads = Config.Backend.cpu, 1
    node = MPINodeInfo(timeout=120)
    data, labels = batch(layers, node.index)
    images, targets = gpuarray.to_gpu(data), gpuarray.to_gpu(labels.astype(np.int32))

    def make(nodeinfo: Any) -> tuple[Any, Callable[[], None]]:
        net, cost = Sequential(), CrossEntropy()
        for number, (insize, outsize) in enumerate(itertools.pairwise(layers)):
            if number:
                net.append(Activation(relu))
            net.append(Linear(insize, outsize, name=f"fc{number}"))
        optimizer = RMSPropGraves(LEARN_RATE, nodeinfo=nodeinfo, shardState=sharded and nodeinfo is not None)
        optimizer.setupOn(net, useGlobalState=True)

        def iterate() -> None:
            _, grad = cost(net(images), targets)
            optimizer.zeroGradParams()
            net.backward(grad)
            optimizer.update()

        return optimizer, iterate

    optimizer, together = make(node)
    return Member(
        node.index,
        {"together": together, "alone": make(None)[1]},
        node.barrier,
        node.allgatherObject,
        lambda: float(sum(np.asarray(var.data).sum(dtype=np.float64) for var in optimizer.globalVar.values())),
        sum(array.nbytes for state in optimizer.states.values() for array in state.values()),
        node.close,
    )


def torchs(layers: tuple[int, ...], sharded: bool) -> Member:
    import torch
    import torch.distributed as dist
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    index, size = int(os.environ["OMPI_COMM_WORLD_RANK"]), int(os.environ["OMPI_COMM_WORLD_SIZE"])
    dist.init_process_group("gloo", rank=index, world_size=size)
    images, labels = map(torch.from_numpy, batch(layers, index))

    def make(group: bool) -> tuple[Any, Any, Callable[[], None]]:
        parts: list[Any] = []
        for insize, outsize in itertools.pairwise(layers):
            parts += [torch.nn.Linear(insize, outsize), torch.nn.ReLU()]
        net: Any = torch.nn.Sequential(*parts[:-1])
        # PyTorch adds epsilon outside the root
        hyper = {"lr": LEARN_RATE, "alpha": 0.95, "eps": 1e-2, "momentum": 0.9, "centered": True, "foreach": True}
        if group:
            net = DistributedDataParallel(net)
        if group and sharded:
            optimizer: Any = ZeroRedundancyOptimizer(net.parameters(), torch.optim.RMSprop, **hyper)
        else:
            optimizer = torch.optim.RMSprop(net.parameters(), **hyper)

        def iterate() -> None:
            optimizer.zero_grad(set_to_none=False)
            torch.nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()

        return net, optimizer, iterate

    def gather(value: float) -> list[Any]:
        found: list[Any] = [None] * size
        dist.all_gather_object(found, value)
        return found

    def close() -> None:
        dist.barrier()
        os._exit(0)  # gloo's threads can block the end of the interpreter

    net, optimizer, together = make(True)
    together()  # creates the state
    local = optimizer.optim if sharded else optimizer
    tensors = [value for state in local.state.values() for value in state.values() if torch.is_tensor(value)]
    return Member(
        index,
        {"together": together, "alone": make(False)[2]},
        dist.barrier,
        gather,
        lambda: float(sum(param.detach().double().sum() for param in net.parameters())),
        sum(tensor.nbytes for tensor in tensors if tensor.numel() > 1),
        close,
    )


CONTENDERS: dict[str, tuple[Callable[[tuple[int, ...], bool], Member], bool]] = {
    "here": (ours, False),
    "here, shardState": (ours, True),
    "PyTorch DDP, gloo": (torchs, False),
    "PyTorch DDP, ZeroRedundancyOptimizer": (torchs, True),
}


def work(name: str, layers: tuple[int, ...], rounds: int, seconds: float) -> None:
    """Measures in every process; process 0 prints a line of JSON."""
    make, sharded = CONTENDERS[name]
    member = make(layers, sharded)
    together = member.iterations["together"]

    def slowest(iterate: Callable[[], None], count: int) -> float:
        member.barrier()
        start = time.perf_counter()
        for _ in range(count):
            iterate()
        return max(member.gather((time.perf_counter() - start) / count))

    for iterate in member.iterations.values():
        slowest(iterate, 3)
    if len(set(member.gather(member.digest()))) != 1:
        raise AssertionError(f"{name}: the processes have different parameters")
    count = max(1, int(seconds / slowest(together, 1)))
    times: dict[str, list[float]] = {what: [] for what in member.iterations}
    for _ in range(rounds):
        for what, iterate in member.iterations.items():  # in turns
            times[what].append(slowest(iterate, count))
    states = member.gather(member.state_bytes)
    if member.index == 0:
        medians = {what: statistics.median(values) for what, values in times.items()}
        print("RESULT " + json.dumps({**medians, "rounds": times, "state_bytes": states}), flush=True)
    member.close()


def launch(name: str, net: str, ranks: int, args: argparse.Namespace) -> dict[str, Any]:
    mpirun = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if mpirun is None:
        raise SystemExit("there is no mpirun")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    more = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    more |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    more |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # containers often run as root
    own = ["--work", name, "--nets", net, "--rounds", str(args.rounds), "--seconds", str(args.seconds)]
    command = [mpirun, "--oversubscribe", "-n", str(ranks), sys.executable, "-m", "benchmarks.distributed", *own]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300, env=os.environ | more)
    found = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if "No module named 'torch'" in done.stderr:
        return {"left out": "torch is not installed"}
    if done.returncode or len(found) != 1:
        raise SystemExit(f"{name}, {net}, {ranks} processes: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="numbers of processes (default: 1 2 4)")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS), help="nets to train (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="number of rounds (default: 7)")
    parser.add_argument("--seconds", type=float, default=0.5, help="approximate duration of a round (default: 0.5)")
    parser.add_argument("--json", metavar="PATH", help="write all figures to this file")
    parser.add_argument("--quick", action="store_true", help="small sizes, only to show that it runs")
    parser.add_argument("--work", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, NETS[args.nets[0]], args.rounds, args.seconds)
        return
    if args.quick:
        args.rounds, args.seconds, args.nets = 1, 0.01, ["digits"]
    results = []
    for net in args.nets:
        size = sum((a + 1) * b for a, b in itertools.pairwise(NETS[net]))
        print(f"\n{net}, {size:,} parameters: microseconds per iteration in a group (alone); bytes of state per process")
        for name in CONTENDERS:
            cells = []
            for ranks in args.ranks:
                found = launch(name, net, ranks, args)
                results.append({"net": net, "parameters": size, "contender": name, "processes": ranks, **found})
                if "left out" in found:
                    cells.append(f"left out: {found['left out']}")
                    break
                micro = [found[what] * 1e6 for what in ("together", "alone")]
                cells.append(f"{ranks}: {micro[0]:,.0f} ({micro[1]:,.0f}); {max(found['state_bytes']):,}")
            print(f"  {name:38s}", " | ".join(cells), flush=True)
    if args.json:
        about = {"cores": len(os.sched_getaffinity(0)), "machine": platform.platform(), "python": platform.python_version()}
        Path(args.json).write_text(json.dumps({"about": about, "batch": BATCH, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
