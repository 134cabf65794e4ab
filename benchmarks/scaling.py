"""The formulas of docs/scaling.md, and its tables: ``python -m benchmarks.scaling``. Estimates; nothing is measured here."""

from __future__ import annotations

import math
from dataclasses import dataclass

RULE = 36  # bytes that the update reads and writes for a float32 parameter: 5 reads, 4 writes
PIECE, SMALL = 1 << 25, 1 << 16  # bytes that MPINodeInfo takes at a time; up to which it leaves an average to MPI


def bytes_sent(elements: int, itemsize: int, processes: int, mode: str = "plain") -> float:
    """What one process sends in a step, for one dtype: of more than 64 KiB, in ``processes`` equal parts.

    ``mode``: "plain", "sharded", or "surveyed": sharded, with a hook that needs whole gradients (GradientClipping).
    """
    passes = {"plain": 2, "sharded": 2, "surveyed": 3}[mode]
    return passes * (processes - 1) / processes * elements * itemsize


def memory(elements: int, itemsize: int, processes: int, mode: str = "plain", state: int = 12) -> float:
    """Bytes of parameters, gradients and state on one process; ``state``: bytes a parameter in all."""
    return 2 * elements * itemsize + state * elements / (1 if mode == "plain" else processes)


@dataclass(frozen=True)
class Cluster:
    """Processes in machines, and what connects them; GB/s and seconds.

    Attributes:
        name: for the table.
        link: of each process to another machine, one way; inside: to a process of its own machine.
        latency: of a message.
        memory: bandwidth of a process's memory.
        tree: whether collectives send along rings and trees (NCCL), or each process to each other (MPINodeInfo).
        machine: processes in one machine.
    """

    name: str
    link: float
    inside: float
    latency: float
    memory: float
    tree: bool
    machine: int

    def exchange(self, nbytes: float, processes: int, passes: int) -> float:
        """Seconds of ``passes`` scatters or gathers, in which a process sends ``nbytes`` in all."""
        if processes == 1:
            return 0.0
        bandwidth = self.inside if processes <= self.machine else self.link
        # MPINodeInfo: each piece is a message to each of the others
        pieces = max(1, math.ceil(nbytes / passes / PIECE))
        messages = math.log2(processes) if self.tree else (processes - 1) * pieces
        return nbytes / bandwidth / 1e9 + passes * messages * self.latency

    def step(self, elements: int, processes: int, mode: str) -> float:
        """Seconds from the gradients to the parameters, all float32."""
        passes = {"plain": 2, "sharded": 2, "surveyed": 3}[mode]
        update = RULE * elements / (1 if mode == "plain" else processes)
        # what arrives is added up on the host: read once, and the sum written
        adding = 0 if self.tree else (processes > 1) * 4 * elements
        if mode == "plain" and not self.tree and 4 * elements <= SMALL:  # MPI's own reduction, along a tree there and back
            hops = 2 * math.log2(processes) * (self.latency + 4 * elements / self.link / 1e9)
            return hops + update / self.memory / 1e9
        exchange = self.exchange(bytes_sent(elements, 4, processes, mode), processes, passes)
        return exchange + (update + adding) / self.memory / 1e9


CLUSTERS = (
    Cluster("GPUs, NCCL, 400 Gb/s each", link=40.0, inside=300.0, latency=10e-6, memory=2500.0, tree=True, machine=8),
    Cluster("CPUs, MPI, 100 Gb/s", link=10.0, inside=10.0, latency=2e-6, memory=150.0, tree=False, machine=1),
    Cluster("CPUs, MPI, 10 Gb/s Ethernet", link=1.0, inside=1.0, latency=25e-6, memory=50.0, tree=False, machine=1),
)
NETS = ((10_768, "10,768"), (25_000_000, "25 million"), (1_500_000_000, "1.5 thousand million"))
PROCESSES = (8, 64, 512, 4096)


def main() -> None:
    for cluster in CLUSTERS:
        print(f"| {cluster.name}: parameters | mode |", " | ".join(f"{n:,}" for n in PROCESSES), "|")
        print("| --- | --- |", " | ".join("---:" for _ in PROCESSES), "|")
        for elements, name in NETS:
            for mode in ("plain", "sharded"):
                times = [f"{cluster.step(elements, n, mode) * 1e3:,.3g} ms" for n in PROCESSES]
                print(f"| {name} | {mode} |", " | ".join(times), "|")
        print()
    print("| memory a process, 1.5 thousand million parameters |", " | ".join(f"{n:,}" for n in PROCESSES), "|")
    print("| --- |", " | ".join("---:" for _ in PROCESSES), "|")
    for mode in ("plain", "sharded"):
        print(f"| {mode} |", " | ".join(f"{memory(NETS[-1][0], 4, n, mode) / 1e9:.2f} GB" for n in PROCESSES), "|")


if __name__ == "__main__":
    main()
