"""Two trainings that must agree bit for bit: of a group, optionally with sharded state, and of a single process."""

import numpy as np

from puzzlelib_rmsprop import RMSPropGraves
from tests.distributed.program.group import WORLD, equal, same_bits
from tests.distributed.program.nets import SHAPES, content, put, some_net, train

OPTIONS = {
    "plain": {},
    "bfloat16 state": {"stateDtype": "bfloat16", "seed": 7},
    "int8 state": {"stateDtype": "int8", "seed": 8, "masterWeights": True},
    "master weights": {"masterWeights": True},
    "all at once": {"stateDtype": "bfloat16", "masterWeights": True, "fuseZeroGrad": True},
    "gradients of the loss": {"gradOfLoss": True, "fuseZeroGrad": True},
}


def pair(node, sharded=True, hooks=lambda: (), **options):
    """Returns optimizer and net of a group, and of a single process that gets the mean gradients."""
    made = []
    for nodeinfo in (node, None):
        net = some_net()
        for name in SHAPES:
            net.getVar(name).wc = 0.5
        # parts may begin anywhere in these
        net.getVar("fc1.b").learnRate, net.getVar("fc0.b").momRate, net.getVar("fc1.W").learnRate = 0.0, 0.5, 2.0
        more = {"shardState": sharded} if nodeinfo is not None else {}
        optimizer = RMSPropGraves(learnRate=0.01, nodeinfo=nodeinfo, **options, **more)
        for hook in hooks():
            optimizer.addHook(hook)
        optimizer.setupOn(net, useGlobalState=True)
        made.append((optimizer, net))
    return made


def in_step(group_of, alone, steps=3, exact=True):
    """Takes the same steps with both, and compares the parameters after each."""
    (optimizer, net), (lonely, other) = group_of, alone

    def both(_):
        optimizer.update()

    for means in train(optimizer, net, both, steps):
        for n, mean in means.items():
            put(other.getVar(n).grad, mean)
        lonely.update()
        for n in SHAPES:
            found = content(net.getVar(n).data)
            assert same_bits(found), n
            assert equal(found, content(other.getVar(n).data)), (n, found, content(other.getVar(n).data))


def whole_state(optimizer):
    """Returns the flat state of all processes by dtype and entity, without the padding of the last part."""
    found = {}
    for dtype, state in optimizer.states.items():
        used = max(slot.offset + slot.size for slot in optimizer._variables if slot.dtype == dtype)
        for entity, array in state.items():
            parts = WORLD.allgather(content(array))
            found[dtype.name, entity] = (np.concatenate(parts) if optimizer.shardState else parts[0])[:used]
    return found
