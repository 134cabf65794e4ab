"""A number of steps in each mode, for counting the bytes that MPI sends."""

import os

import numpy as np

from puzzlelib_rmsprop import GradientClipping, RMSPropGraves, Variable
from tests.distributed.program.group import CHECKS, families, group
from tests.standins import Net


def steps_of(mode):
    make = next(iter(families().values()))[0]
    # more than 100,000 bytes each, divisible into equal parts for any tested number of processes
    net = Net(W=Variable(make(np.ones(60_000, np.float32))), H=Variable(make(np.ones(60_000, np.float16))))
    with group() as node:
        optimizer = RMSPropGraves(nodeinfo=node, shardState=mode != "plain")
        if mode == "surveyed":
            optimizer.addHook(GradientClipping(1.0))
        optimizer.setupOn(net, useGlobalState=True)
        for _ in range(int(os.environ["STEPS"])):
            optimizer.update()


def what_is_sent():
    """Takes STEPS steps in each mode. Runs on its own."""
    for mode in ("plain", "sharded", "surveyed"):
        steps_of(mode)


what_is_sent.disaster = True  # reports no result
CHECKS["what_is_sent"] = what_is_sent
