"""PuzzleLib's trainings, replayed on the library's own net; shared by the tests of results, files and nets."""

import itertools
from pathlib import Path

import numpy as np

from puzzlelib_rmsprop import RMSPropGraves, WeightDecay, gpuarray
from puzzlelib_rmsprop.nets import MSE, Activation, Linear, Sequential, relu

DATA = Path(__file__).parent / "data"
KINDS = ["local", "global", "local_rates_wd"]
NAMES = [f"fc{i}.{what}" for i in range(3) for what in "Wb"]


class Replay:
    """A net with the initial values of one of PuzzleLib's trainings, its data, and an optimizer with its options."""

    def __init__(self, kind, globalState):
        self.golden = np.load(DATA / f"net_{kind}.npz")
        sizes = self.golden["sizes"].tolist()
        self.net = Sequential()
        for i, (insize, outsize) in enumerate(itertools.pairwise(sizes)):
            self.net.append(Linear(insize, outsize, name=f"fc{i}"))
            if i < len(sizes) - 2:
                self.net.append(Activation(relu))
        for name in NAMES:
            self.net.getVar(name).data.set(self.golden[f"init.{name}"])
        self.data, self.target = gpuarray.to_gpu(self.golden["data"]), gpuarray.to_gpu(self.golden["target"])
        self.cost = MSE()
        self.optimizer = RMSPropGraves(learnRate=1e-3)
        if kind == "local_rates_wd":
            self.optimizer.addHook(WeightDecay(1e-3))
        self.optimizer.setupOn(self.net, useGlobalState=globalState)
        if kind == "local_rates_wd":
            for var in self.net.getVarTable():
                var.wc = 0.5
            self.net.getVar("fc0.b").learnRate, self.net.getVar("fc0.b").momRate = 0.25, 0.5
            self.net.getVar("fc1.b").learnRate = 0

    def step(self):
        """One iteration; returns the cost before its update."""
        error, grad = self.cost(self.net(self.data), self.target)
        self.optimizer.zeroGradParams()
        self.net.backward(grad)
        self.optimizer.update()
        return error

    def state(self, name):
        return next(slot.state for slot in self.optimizer._variables if slot.names[0] == name)
