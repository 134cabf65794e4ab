"""Training on several processes of this machine: an iteration's time against their number, ours beside PyTorch's.

    python -m benchmarks.distributed --ranks 1 2 4 --json benchmarks/results/NAME.json

needs mpi4py, an MPI and, for the peers, torch (``--torch-python`` names another Python that has it). Every process runs on
one thread, with a batch of its own. An iteration zeroes the gradients, runs the net forwards and back, averages and updates;
"alone" is the same on every process at once, without a group: what is left between the two is the price of the group.
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
from typing import Any

import numpy as np

NETS = {"digits": (64, 256, 128, 10), "wide": (784, 2048, 2048, 10)}
BATCH, LEARN_RATE = 32, 1e-4

Iteration = Callable[[], None]


class Contender:
    """``iterate(alone)`` makes one iteration; ``barrier``, ``gather`` (numbers) and ``digest`` serve the measurement."""

    state_bytes = 0

    def __init__(self, layers: tuple[int, ...], index: int) -> None:
        rng = np.random.default_rng(index)
        self.data = rng.standard_normal((BATCH, layers[0])).astype(np.float32)
        self.labels = rng.integers(0, layers[-1], BATCH)


class Ours(Contender):
    def __init__(self, layers: tuple[int, ...], sharded: bool) -> None:
        from puzzlelib_rmsprop import Config, MPINodeInfo, RMSPropGraves, gpuarray
        from puzzlelib_rmsprop.nets import Activation, CrossEntropy, Linear, Sequential, relu

        Config.backend, Config.numThreads = Config.Backend.cpu, 1
        self.node = MPINodeInfo(timeout=120)
        super().__init__(layers, self.node.index)
        self.index = self.node.index
        images, labels = gpuarray.to_gpu(self.data), gpuarray.to_gpu(self.labels.astype(np.int32))

        def make(nodeinfo: Any) -> tuple[Any, Iteration]:
            net, cost = Sequential(), CrossEntropy()
            for number, (insize, outsize) in enumerate(itertools.pairwise(layers)):
                if number:
                    net.append(Activation(relu))
                net.append(Linear(insize, outsize, name=f"fc{number}"))
            optimizer = RMSPropGraves(LEARN_RATE, nodeinfo=nodeinfo, shardState=sharded and nodeinfo is not None)
            optimizer.setupOn(net, useGlobalState=True)

            def iterate() -> None:
                _, grad = cost(net(images), labels)
                optimizer.zeroGradParams()
                net.backward(grad)
                optimizer.update()

            return optimizer, iterate

        self.optimizer, self.together = make(self.node)
        _, self.alone = make(None)
        self.state_bytes = sum(array.nbytes for state in self.optimizer.states.values() for array in state.values())
        self.barrier, self.gather = self.node.barrier, self.node.allgatherObject

    def digest(self) -> float:
        return float(sum(np.asarray(var.data).sum(dtype=np.float64) for var in self.optimizer.globalVar.values()))

    def close(self) -> None:
        self.node.close()


class Torchs(Contender):
    def __init__(self, layers: tuple[int, ...], sharded: bool) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.optim import ZeroRedundancyOptimizer
        from torch.nn.parallel import DistributedDataParallel

        torch.set_num_threads(1)
        self.index, size = int(os.environ["OMPI_COMM_WORLD_RANK"]), int(os.environ["OMPI_COMM_WORLD_SIZE"])
        dist.init_process_group("gloo", rank=self.index, world_size=size)
        super().__init__(layers, self.index)
        self.dist, self.size, self.torch = dist, size, torch
        images, labels = torch.from_numpy(self.data), torch.from_numpy(self.labels)

        def make(group: bool) -> tuple[Any, Any, Iteration]:
            parts: list[Any] = []
            for number, (insize, outsize) in enumerate(itertools.pairwise(layers)):
                parts += [torch.nn.ReLU()] * bool(number) + [torch.nn.Linear(insize, outsize)]
            net: Any = torch.nn.Sequential(*parts)
            # epsilon is outside of the root there
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

        self.net, optimizer, self.together = make(True)
        _, _, self.alone = make(False)
        self.together()
        local = optimizer.optim if sharded else optimizer
        tensors = [value for state in local.state.values() for value in state.values() if torch.is_tensor(value)]
        self.state_bytes = sum(tensor.nbytes for tensor in tensors if tensor.numel() > 1)
        self.barrier = dist.barrier

    def gather(self, value: float) -> list[Any]:
        found: list[Any] = [None] * self.size
        self.dist.all_gather_object(found, value)
        return found

    def digest(self) -> float:
        return float(sum(p.detach().double().sum() for p in self.net.parameters()))

    def close(self) -> None:
        self.barrier()
        os._exit(0)  # gloo's threads can keep the interpreter from ending


CONTENDERS: dict[str, tuple[type, bool, str]] = {
    "here": (Ours, False, "here"),
    "here, shardState": (Ours, True, "here"),
    "PyTorch DDP, gloo": (Torchs, False, "torch"),
    "PyTorch DDP, ZeroRedundancyOptimizer": (Torchs, True, "torch"),
}


def work(name: str, layers: tuple[int, ...], rounds: int, seconds: float) -> None:
    """On every process: measures, and process 0 prints a line of JSON."""
    kind, sharded, _ = CONTENDERS[name]
    contender = kind(layers, sharded)
    for _ in range(3):
        contender.together()
        contender.alone()
    if len(set(contender.gather(contender.digest()))) != 1:
        raise AssertionError(f"{name}: the processes have different parameters")
    times: dict[str, list[float]] = {"together": [], "alone": []}
    contender.barrier()
    start = time.perf_counter()
    contender.together()
    count = max(1, int(seconds / max(contender.gather(time.perf_counter() - start))))
    for _ in range(rounds):
        for what in times:  # in turns
            iterate = getattr(contender, what)
            contender.barrier()
            start = time.perf_counter()
            for _ in range(count):
                iterate()
            times[what].append(max(contender.gather((time.perf_counter() - start) / count)))
    states = contender.gather(contender.state_bytes)
    if contender.index == 0:
        medians = {what: statistics.median(values) for what, values in times.items()}
        print("RESULT " + json.dumps({**medians, "rounds": times, "state_bytes": states}), flush=True)
    contender.close()


def launch(name: str, net: str, ranks: int, args: argparse.Namespace) -> dict[str, Any]:
    python = args.torch_python if CONTENDERS[name][2] == "torch" else sys.executable
    mpirun = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if mpirun is None:
        raise SystemExit("there is no mpirun")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        # in a container everybody is root
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    own = ["--work", name, "--nets", net, "--rounds", str(args.rounds), "--seconds", str(args.seconds)]
    command = [mpirun, "--oversubscribe", "-n", str(ranks), python, "-m", "benchmarks.distributed", *own]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300, env=environment)
    found = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if "No module named 'torch'" in done.stderr:
        return {"left out": "torch is not installed"}
    if done.returncode or len(found) != 1:
        raise SystemExit(f"{name}, {net}, {ranks} processes: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each round, about")
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
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
        print(f"\n{net}, {size:,} parameters: microseconds an iteration, in a group (alone); bytes of state on a process")
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
