"""A context on the simulator, and the kernels of kernels.cu in it."""

from pathlib import Path

import pytest

from tests.cudasim import control


@pytest.fixture(scope="module")
def context():
    from tests.cuda.simulator.machine import drv

    drv.init()
    context = drv.Device(0).retain_primary_context()
    context.push()
    yield context
    context.pop()


@pytest.fixture(scope="module")
def module(context):
    from tests.cuda.simulator.machine import SourceModule

    return SourceModule(Path(__file__).with_name("kernels.cu").read_text(), no_extern_c=True)


@pytest.fixture(autouse=True)
def clean(context):
    """Every test starts with the same seed and counters, and must not leave a fault that it has not checked."""
    from tests.cuda.simulator.machine import drv

    drv.Context.synchronize()
    control.seed(0)
    control.reset()
    yield
    left = control.clear_fault()
    assert not left
