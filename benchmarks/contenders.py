"""The contenders: each computes a step of an optimizer, all with the same hyper-parameters.

``CONTENDERS[name].make(params, grads, where)`` copies lists of NumPy arrays of one dtype into the contender's arrays, and
returns a :class:`~benchmarks.work.Work`. It imports the contender's packages, all of which are optional.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .by_hand import c_loop, copy
from .check import Formula, adam, centered, epsilon_outside
from .frameworks import optax_jit, paddle_rmsprop, tensorflow, torch_step
from .ours import bare_look, call_alone, ours
from .work import Arrays, Where, Work


@dataclass(frozen=True)
class Contender:
    """One contender.

    Attributes:
        kind: ours; peer (another implementation of the rule); other rule; limit (a copy or a loop without a rule).
        formula: its formula; None if its arrays hold the gradients after a step.
        state: a function from the bytes of a parameter's element to those of a state's element.
        states: number of state arrays.
        master: bytes per element of the master weights.
        dead: it is timed after thousands of steps with a gradient of zero.
    """

    make: Callable[[Arrays, Arrays, Where], Work]
    kind: str
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[str, ...] = ("float32",)
    formula: Formula | None = centered
    state: Callable[[int], int] = lambda width: width
    states: int = 3
    master: int = 0
    dead: bool = False

    def bytes_moved(self, dtype: str) -> int:
        """Returns the bytes per element that a step reads and writes: param and state twice, grad once; twice for a copy."""
        width = np.dtype(dtype).itemsize
        if self.kind == "limit":
            return 2 * width
        # with master weights the parameter itself is only written
        param = width + 2 * self.master if self.master else 2 * width
        return param + width + 2 * self.states * self.state(width)


OURS, LOCAL, ONE_THREAD = (f"puzzlelib_rmsprop, {what}" for what in ("global", "local", "global, one thread"))
FOREIGN, FOREIGN_LOCAL = f"{OURS}, foreign classes", f"{LOCAL}, foreign classes"
CALL = "puzzlelib_rmsprop, the library's call alone"
BFLOAT16, INT8 = (f"{OURS}, {state} state" for state in ("bfloat16", "int8"))
MASTER, FUSED = (f"{OURS}, {what}" for what in ("master weights", "zeroed in the pass"))
C_LOOP, COPY, LOOK = "PuzzleLib's C loop, one thread", "copy", "bare loop over the variables"
TORCH, LOOP = "puzzlelib_rmsprop.torch", "PyTorch loop"
FOREACH, COMPILE, ADAM = "PyTorch foreach", "PyTorch compile", "PyTorch fused Adam"
TENSORFLOW, OPTAX, PADDLE = "TensorFlow", "Optax, jit", "Paddle"

BOTH, WIDE, ALL = ("cpu", "cuda"), ("float32", "float64"), ("float16", "float32", "float64")


def _ours(
    devices: tuple[str, ...] = BOTH, dtypes: tuple[str, ...] = ALL, state: int = 0, master: int = 0, **options: Any
) -> Contender:
    return Contender(ours(**options), "ours", devices, dtypes, state=lambda width: state or max(4, width), master=master)


CONTENDERS: dict[str, Contender] = {
    OURS: _ours(),
    LOCAL: _ours(global_state=False),
    ONE_THREAD: _ours(("cpu",), one_thread=True),
    FOREIGN: _ours(("cpu",), foreign=True),
    FOREIGN_LOCAL: _ours(("cpu",), foreign=True, global_state=False),
    CALL: Contender(call_alone, "ours"),
    BFLOAT16: _ours(dtypes=("float16", "float32"), state=2, stateDtype="bfloat16"),
    # without the scales, which add 2% of bytes
    INT8: _ours(dtypes=("float16", "float32"), state=1, stateDtype="int8"),
    FUSED: _ours(fuseZeroGrad=True),
    MASTER: _ours(dtypes=("float16",), master=4, masterWeights=True),
    TORCH: Contender(torch_step("ours"), "ours", BOTH, ALL, state=lambda width: max(4, width)),
    C_LOOP: Contender(c_loop, "peer"),
    LOOP: Contender(torch_step("loop"), "peer", BOTH, ALL, epsilon_outside),
    FOREACH: Contender(torch_step("foreach"), "peer", BOTH, ALL, epsilon_outside),
    COMPILE: Contender(torch_step("compile"), "peer", BOTH, ALL, epsilon_outside),
    TENSORFLOW: Contender(tensorflow, "peer", dtypes=ALL),
    OPTAX: Contender(optax_jit, "peer", dtypes=ALL),
    PADDLE: Contender(paddle_rmsprop, "peer", dtypes=WIDE),
    ADAM: Contender(torch_step("Adam"), "other rule", formula=adam, states=2),
    COPY: Contender(copy, "limit", BOTH, ALL, None, states=0),
    LOOK: Contender(bare_look, "limit", formula=None, states=0),
}

# the same with dead units, timed in turns with the others
DEAD = {name: f"{name}, dead units" for name in (OURS, C_LOOP, COMPILE, OPTAX)}
CONTENDERS |= {
    dead: replace(CONTENDERS[name], dead=True, devices=("cpu",), dtypes=("float32",)) for name, dead in DEAD.items()
}
