"""Variables on a GPU for tests: arrays between guards, alone or in a net with an optimizer."""

import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves
from puzzlelib_rmsprop.kernels import Segment, layout, real_dtype
from tests.reference import Reference
from tests.standins import Net
from tests.tolerances import TOLERANCE, assert_close

pytest.importorskip("ml_dtypes")  # without it, the tests that import this file are skipped

DTYPES = ["float16", "bfloat16", "float32", "float64"]
HYPER = {"learnRate": 1e-2, "alpha": 0.95, "momRate": 0.9, "epsilon": 1e-4}
STEPS = 4
STATE = ("mg", "variance", "delta")
GUARD = 64  # elements on either side of an array


def start(size, dtype, seed=0):
    rng = np.random.default_rng(seed)
    param = rng.standard_normal(size).astype(dtype)
    grads = rng.standard_normal((STEPS, size)).astype(dtype)
    return param, grads


def chunk():
    return layout.CHUNK


def sizes():
    edges = [0, 1, 2, 7, 8, 9, 255, 256, 257, 1023, 1025, 4099]
    return [*edges, "chunk-1", "chunk", "chunk+1", "3chunk+5"]


def size_of(size):
    if isinstance(size, int):
        return size
    return {"chunk-1": chunk() - 1, "chunk": chunk(), "chunk+1": chunk() + 1, "3chunk+5": 3 * chunk() + 5}[size]


class Buffers:
    """The arrays of a variable on the device, each between guards of NaN, and ``offset`` elements off alignment."""

    def __init__(self, param, state, offsets=(0,) * 5, master=False):
        from pycuda import gpuarray as device

        self.size, self.state, self.guarded = param.size, np.dtype(state).name, []
        kept = np.dtype("uint8" if self.state == "int8" else state)
        contents = {"param": param, "grad": np.frombuffer(b"\xff" * param.nbytes, param.dtype)}
        contents |= {name: np.zeros(param.size, kept) for name in STATE}
        contents |= {"master": param.astype(np.float32)} if master else {}
        contents |= {"scales": np.zeros(-(-param.size // layout.BLOCK) * 3, np.uint8)} if self.state == "int8" else {}
        self.names, self.sizes = list(contents), [content.size for content in contents.values()]
        self.offsets = (*offsets, 0, 0)[: len(contents)]
        for content, offset in zip(contents.values(), self.offsets, strict=True):
            # all bits set, which is NaN for floats
            host = np.full((content.size + 2 * GUARD + offset) * content.itemsize, 0xFF, np.uint8).view(content.dtype)
            host[GUARD + offset : GUARD + offset + content.size] = content
            self.guarded.append(device.to_gpu(host))

    def segment(self, **more):
        addresses = dict(zip(self.names, map(self.address, range(len(self.guarded))), strict=True))
        return Segment(self.guarded[0].dtype.name, self.state, size=self.size, **addresses, **more)

    def address(self, i):
        return int(self.guarded[i].gpudata) + (GUARD + self.offsets[i]) * self.guarded[i].dtype.itemsize

    def set(self, name, content):
        i = self.names.index(name)
        host = self.guarded[i].get()
        host[GUARD + self.offsets[i] : GUARD + self.offsets[i] + self.sizes[i]] = content
        self.guarded[i].set(host)

    def set_grad(self, grad):
        self.set("grad", grad)

    def get(self):
        found = {}
        for name, guarded, offset, size in zip(self.names, self.guarded, self.offsets, self.sizes, strict=True):
            host = guarded.get()
            begin = GUARD + offset
            assert (host[:begin].view(np.uint8) == 0xFF).all(), f"{name}: written in front of it"
            assert (host[begin + size :].view(np.uint8) == 0xFF).all(), f"{name}: written past its end"
            found[name] = host[begin : begin + size]
        return found


def stored(dtype):
    return dtype if dtype in ("float16", "bfloat16") else None


def check(found, param, grads, dtype, factors=(1.0, 1.0, 0.0)):
    """Compares with the formula in float64, and bit for bit with the formula in the precision of the kernel."""
    exact = Reference(param, dtype=real_dtype(np.dtype(dtype)), stored=stored(dtype))
    oracle = Reference(param, stored=stored(dtype))
    for grad in grads:
        for reference in (exact, oracle):
            rates = {"learnRate": HYPER["learnRate"] * factors[0], "momRate": HYPER["momRate"] * factors[1]}
            reference.step(grad, **(HYPER | rates))
    tolerance = TOLERANCE["float16" if dtype == "bfloat16" else dtype]
    for name, content in oracle.buffers().items():
        limit = 8e-3 if (dtype, name) == ("bfloat16", "param") else tolerance[name]  # eight bits, one unit of error
        assert_close(found[name], content, limit, name, oracle.largest[name])
    for name, content in exact.buffers().items():
        assert np.array_equal(found[name].astype(content.dtype), content), f"{name} differs in the last bit"


def table_of(kernels, entry, buffers, factors):
    """Returns a table of one variable; for the kernel for many, of two."""
    every = [buffers]
    if entry == "many":
        every.append(Buffers(np.zeros(3, buffers.guarded[0].dtype), buffers.guarded[2].dtype))
        every[1].set_grad(1.0)
    table = kernels.Table([each.segment() for each in every])
    table.set_rates([(*factors, 0.0)] * len(every))
    table.held = every
    return table


class OneByOne(RMSPropGraves):
    """Makes each step one call per variable."""

    def updateVar(self, var, state, stream=None):
        super().updateVar(var, state, stream)


def make(cuda, shapes, globalState, dtype="float32", kind=RMSPropGraves, **options):
    rng = np.random.default_rng(0)
    net = Net({f"v{i:04}": cuda.var(rng.standard_normal(shape).astype(dtype)) for i, shape in enumerate(shapes)})
    optimizer = kind(**(HYPER | options))
    optimizer.setupOn(net, globalState)
    for var in net.vars.values():
        cuda.put(var.grad, rng.standard_normal(var.grad.shape))
    return net, optimizer
