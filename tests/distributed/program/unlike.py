"""Checks of processes on different processors: each uses another instruction set and number of threads."""

import contextlib

import ml_dtypes
import numpy as np

from puzzlelib_rmsprop import GradientClipping, LossScaling, NonFiniteGuard, RMSPropGraves, Variable, WeightDecay
from puzzlelib_rmsprop.kernels import cpu, layout
from tests.distributed.program.group import CUDA, RANK, SIZE, WORLD, check, group, same_bits
from tests.distributed.program.nets import content
from tests.distributed.program.pairs import OPTIONS
from tests.standins import Net

HOOKS = {
    "no hooks": lambda: (),
    "clipping": lambda: (GradientClipping(0.5),),
    "scaled, guarded and clipped": lambda: (LossScaling(8.0), WeightDecay(0.1), GradientClipping(0.5)),
    "guarded": lambda: (NonFiniteGuard(), GradientClipping(0.5)),
}
# enough for several chunks and threads; not a multiple of any vector length
SHAPES = {"w": (layout.PARALLEL_FROM + 4097,), "b": (1031, 3), "c": (13,)}


@contextlib.contextmanager
def as_on_another_processor():
    """Sets this process's instruction set and threads, like PUZZLELIB_RMSPROP_CPU and Config.numThreads."""
    name, update_threads = cpu.instruction_sets()[RANK % len(cpu.instruction_sets())], cpu._Args.update_threads
    before = cpu._compiled, cpu.library and cpu.library.in_use()
    cpu._compiled = name != "numpy"
    if cpu._compiled:
        cpu.library.use(name)
    cpu._Args.update_threads = lambda args, most=None: args.set(threads=SIZE - RANK)  # even with fewer cores
    try:
        yield name
    finally:
        cpu._compiled, cpu._Args.update_threads = before[0], update_threads
        if cpu.library:
            cpu.library.use(before[1])


def some_net():
    rng = np.random.default_rng(5)
    dtypes = ("float16", ml_dtypes.bfloat16, "float32", "float64")
    made = {f"{np.dtype(d).name}.{n}": rng.standard_normal(s).astype(d) for d in dtypes for n, s in SHAPES.items()}
    net = Net({name: Variable(array) for name, array in made.items()})
    for variable in net.vars.values():
        variable.wc = 0.5
    return net


@check
def unlike_processors_take_the_same_steps():
    if CUDA:
        return
    with as_on_another_processor() as name, group() as node:
        assert len(set(WORLD.allgather(name))) == min(SIZE, len(cpu.instruction_sets()))
        for shardState in (False, True):
            for what, hooks in HOOKS.items():
                for which, options in OPTIONS.items():
                    net = some_net()
                    optimizer = RMSPropGraves(learnRate=0.01, nodeinfo=node, shardState=shardState, **options)
                    for hook in hooks():
                        optimizer.addHook(hook)
                    optimizer.setupOn(net, useGlobalState=True)
                    for step in range(2):
                        for number, variable in enumerate(net.vars.values()):
                            rng = np.random.default_rng([step, RANK, number])
                            variable.grad[...] = rng.standard_normal(variable.grad.shape) * 10.0 ** rng.integers(-3, 2)
                        optimizer.update()
                        for n, variable in net.vars.items():
                            assert same_bits(variable.data), (shardState, what, which, step, n)
                    norms = [hook.norm for hook in optimizer.hooks if isinstance(hook, GradientClipping)]
                    assert same_bits(np.array(norms)), (shardState, what, which)
                    if not shardState:
                        for dtype, state in optimizer.states.items():
                            for entity, array in state.items():
                                assert same_bits(content(array)), (what, which, dtype, entity)
