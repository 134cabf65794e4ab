"""Compares the library's results with those of PuzzleLib itself (tests/data/README.md)."""

import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves, Variable, gpuarray
from tests.golden import DATA, KINDS, NAMES, Replay
from tests.standins import Net
from tests.tolerances import GOLDEN, assert_close

pytestmark = pytest.mark.usefixtures("backend")

STEPS = np.load(DATA / "kernel_steps.npz")
CASES = sorted(key[: -len("_param0")] for key in STEPS.files if key.endswith("_param0"))


def test_there_are_golden_cases():
    assert len(CASES) == 16


@pytest.mark.parametrize("case", CASES)
def test_kernel_steps(case, globalState):
    learnRate, alpha, momRate, epsilon = STEPS["hyper"][int(case[len("case")])]
    var = Variable(gpuarray.to_gpu(STEPS[f"{case}_param0"]))
    optimizer = RMSPropGraves(learnRate=learnRate, alpha=alpha, momRate=momRate, epsilon=epsilon)
    optimizer.setupOn(Net(W=var), globalState)
    (slot,) = optimizer._variables
    for step, (grad, after) in enumerate(zip(STEPS[f"{case}_grads"], STEPS[f"{case}_after"], strict=True)):
        var.grad.set(grad)
        optimizer.update()
        buffers = {name: array.get() for name, array in {"param": var.data, **slot.state}.items()}
        buffers["ms"] = buffers["variance"].astype(np.float64) + np.square(buffers["mg"].astype(np.float64))
        for name, expected in zip(("param", "mg", "ms", "delta"), after, strict=True):
            assert_close(buffers[name], expected, GOLDEN[name], f"{case}, step {step}: {name}")


@pytest.mark.parametrize("kind", KINDS)
def test_trainings(kind, globalState):
    # in either mode: where PuzzleLib's global mode works, its results equal those of its local mode
    replay = Replay(kind, globalState)
    for step, expected in enumerate(replay.golden["errors"]):
        error, grad = replay.cost(replay.net(replay.data), replay.target)
        assert abs(error - expected) <= 1e-5 * expected, step
        replay.optimizer.zeroGradParams()
        replay.net.backward(grad)
        if step < 3:
            for name in NAMES:
                assert_close(
                    replay.net.getVar(name).grad.get(), replay.golden[f"grad{step}.{name}"], 1e-5, f"{step}: {name}"
                )
        replay.optimizer.update()
    for name in NAMES:
        assert_close(replay.net.getVar(name).data.get(), replay.golden[f"final.{name}"], 1e-5, name)
    assert replay.golden["errors"][-1] < 0.1 * replay.golden["errors"][0], "the training must have gone somewhere"
