"""Who is timed: each computes a step of an optimizer, all are set to the same hyper-parameters.

``CONTENDERS[name].make(params, grads, where)`` takes lists of arrays of a dtype, copies them into what the contender
works on, and returns a :class:`~benchmarks.work.Work`. What it imports, it imports there: each is optional.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .by_hand import c_loop, copy, copy_threads, numpy_passes
from .check import Formula, adagrad, adam, centered, epsilon_outside, sgd
from .frameworks import cupy_fused, optax_jit, paddle_rmsprop, tensorflow, torch_fused, torch_rmsprop
from .ours import call_alone, ours
from .work import Arrays, Where, Work


@dataclass(frozen=True)
class Contender:
    """How to make one, and what is to be known of it.

    Attributes:
        kind: ours; peer (what a user would pick instead); by hand (no optimizer, but the formula); bar (a fused step of
            another rule); limit (a copy).
        formula: what it computes; None is a copy.
        state: bytes of a state's element, by that of a parameter's; states: arrays of state.
        master: bytes of a parameter's master copy.
        zeroes: its step leaves gradients of zero, so that it is timed where they are zeroed and written again only.
        dead: it is timed after thousands of steps in which the gradient of units, or all of it, was zero.
        spins: its threads wait for work by spinning, so that whoever comes after it has to wait for them to sleep.
        most_variables: where setting it up for more takes minutes.
    """

    make: Callable[[Arrays, Arrays, Where], Work]
    kind: str
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[str, ...] = ("float32",)
    formula: Formula | None = centered
    state: Callable[[int], int] = lambda width: width
    states: int = 3
    master: int = 0
    zeroes: bool = False
    dead: bool = False
    spins: bool = False
    most_variables: int | None = None

    def bytes_moved(self, dtype: str) -> int:
        """Bytes an element that have to be read and written: param and state twice, grad once; a copy's gradient twice."""
        width = np.dtype(dtype).itemsize
        if self.kind == "limit":
            return 2 * width
        # with a master copy the parameter itself is only written
        param = width + 2 * self.master if self.master else 2 * width
        return param + (2 if self.zeroes else 1) * width + 2 * self.states * self.state(width)


OURS, LOCAL, ONE_THREAD = (f"puzzlelib_rmsprop, {what}" for what in ("global", "local", "global, one thread"))
FOREIGN, FOREIGN_LOCAL = f"{OURS}, foreign classes", f"{LOCAL}, foreign classes"
CALL = "puzzlelib_rmsprop, the library's call alone"
BFLOAT16, MASTER, FUSED = (f"{OURS}, {what}" for what in ("bfloat16 state", "master weights", "zeroed in the pass"))
C_LOOP, COPY, COPY_THREADS = "PuzzleLib's C loop, one thread", "copy", "copy, threads"
FOREACH, COMPILE, CUPY = "PyTorch foreach", "PyTorch compile", "CuPy, one ElementwiseKernel"
ADAM, SGD, ADAGRAD = (f"PyTorch fused {rule}" for rule in ("Adam", "SGD", "Adagrad"))
BARS = (ADAM, SGD, ADAGRAD)

_BOTH, _WIDE, _ALL = ("cpu", "cuda"), ("float32", "float64"), ("float16", "float32", "float64")


def _ours(
    *dtypes: str, devices: tuple[str, ...] = _BOTH, state: int | None = None, master: int = 0, **options: Any
) -> Contender:
    return Contender(
        ours(**options),
        "ours",
        devices,
        dtypes or _ALL,
        state=lambda width: state or max(4, width),
        master=master,
        zeroes="fuseZeroGrad" in options,
    )


def _torch(foreach: bool, compiled: bool = False) -> Contender:
    make, most = torch_rmsprop(foreach, compiled), 100 if compiled else None
    return Contender(make, "peer", _BOTH, _ALL, formula=epsilon_outside, spins=True, most_variables=most)


def _bar(rule: str, formula: Formula, states: int) -> Contender:
    return Contender(torch_fused(rule), "bar", formula=formula, states=states, spins=True)


CONTENDERS: dict[str, Contender] = {
    OURS: _ours(),
    LOCAL: _ours(global_state=False),
    ONE_THREAD: _ours(devices=("cpu",), one_thread=True),
    FOREIGN: _ours(devices=("cpu",), foreign=True),
    FOREIGN_LOCAL: _ours(devices=("cpu",), foreign=True, global_state=False),
    CALL: Contender(call_alone, "ours"),
    BFLOAT16: _ours("float16", "float32", state=2, stateDtype="bfloat16"),
    FUSED: _ours(fuseZeroGrad=True),
    MASTER: _ours("float16", master=4, masterWeights=True),
    "NumPy": Contender(numpy_passes, "by hand", dtypes=_WIDE),
    C_LOOP: Contender(c_loop, "by hand"),
    "PyTorch loop": _torch(foreach=False),
    FOREACH: _torch(foreach=True),
    COMPILE: _torch(foreach=True, compiled=True),
    "TensorFlow": Contender(tensorflow, "peer", dtypes=_ALL, spins=True),
    "Optax, jit": Contender(optax_jit, "peer", dtypes=_ALL, spins=True, most_variables=1000),
    "Paddle": Contender(paddle_rmsprop, "peer", dtypes=_WIDE, spins=True),
    CUPY: Contender(cupy_fused, "peer", ("cuda",), ("float16", "float32"), state=lambda width: 4),
    ADAM: _bar("Adam", adam, 2),
    SGD: _bar("SGD", sgd, 1),
    ADAGRAD: _bar("Adagrad", adagrad, 1),
    COPY: Contender(copy, "limit", _BOTH, _ALL, None, states=0),
    COPY_THREADS: Contender(copy_threads, "limit", dtypes=_ALL, formula=None, states=0),
}

# the same with dead units, timed in turns with those that have none
DEAD = {name: f"{name}, dead units" for name in (OURS, C_LOOP, COMPILE, "Optax, jit")}
CONTENDERS |= {
    dead: replace(CONTENDERS[name], dead=True, devices=("cpu",), dtypes=("float32",)) for name, dead in DEAD.items()
}
