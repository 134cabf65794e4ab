"""A net of variables, an optimizer on it, and the float64 reference of each variable."""

import numpy as np

from puzzlelib_rmsprop import RMSPropGraves
from tests.reference import Reference
from tests.standins import Net
from tests.tolerances import TOLERANCE, assert_close

SHAPES = {"fc1.W": (5, 3), "fc1.b": (3,), "fc0.W": (7, 5), "fc0.b": (5,), "scalar": (), "none": (0, 4)}


class Case:
    """A net of variables, the optimizer on it, and the float64 reference of each variable."""

    def __init__(self, arrays, globalState, dtype="float32", shapes=SHAPES, seed=0, **hyper):
        self.rng = np.random.default_rng(seed)
        self.arrays, self.dtype = arrays, dtype
        params = {name: self.rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
        self.net = Net({name: arrays.var(param) for name, param in params.items()})
        stored = "float16" if dtype == "float16" else None
        self.expected = {name: Reference(param, stored=stored) for name, param in params.items()}
        self.hyper = {"learnRate": 1e-2, **hyper}
        self.optimizer = RMSPropGraves(**self.hyper)
        self.optimizer.setupOn(self.net, useGlobalState=globalState)

    def var(self, name):
        return self.net.getVar(name)

    def fill_grads(self):
        grads = {}
        for name in self.expected:
            grads[name] = self.rng.standard_normal(self.expected[name].param.shape).astype(self.dtype)
            self.arrays.put(self.var(name).grad, grads[name])
        return grads

    def step(self, frozen=(), learnRate=None, momRate=None, change=None):
        """Takes one update, and the reference's with each variable's rates; ``change`` imitates the hooks on a gradient."""
        grads = self.fill_grads()
        self.optimizer.update()
        for name, reference in self.expected.items():
            if name in frozen:
                continue
            grad = grads[name] if change is None else change(name, grads[name], reference.param)
            reference.step(
                grad,
                learnRate=self.optimizer.learnRate * (learnRate or {}).get(name, 1.0),
                momRate=self.optimizer.momRate * (momRate or {}).get(name, 1.0),
            )

    def check(self, tolerance=None):
        for slot in self.optimizer._variables:
            name = slot.names[0]
            actual = {"param": slot.var.data, **slot.state}
            for buffer, content in self.expected[name].buffers().items():
                limit = tolerance or TOLERANCE[self.dtype][buffer]
                assert_close(self.arrays.get(actual[buffer]), content, limit, f"{name}: {buffer}")
