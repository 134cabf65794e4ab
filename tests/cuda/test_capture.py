"""Captured launches: they read the current hyper-parameters from device memory, and keep their own table."""

import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves, Variable, gpuarray
from puzzlelib_rmsprop.errors import SetupError
from puzzlelib_rmsprop.kernels import SCALE, Hyper, Operation, StepOptions
from tests.cuda import extended
from tests.cuda.extended import plain
from tests.cuda.variables import HYPER, OneByOne, make
from tests.standins import Net


def test_capturable_launches_follow_assignments(cuda, globalState):
    # a replay repeats the launch without Python: simulated by launching the packed arguments again
    net, optimizer = make(cuda, [(300,), (77,)], globalState, capturable=True)
    eager_net, eager = make(cuda, [(300,), (77,)], globalState)
    optimizer.update()
    eager.update()
    plain = [group._plain for group, _ in optimizer._plan.table._launched]
    launches = [(launch.function, launch.grid, bytes(launch.arguments)) for launch in plain]
    for change in ({}, {"learnRate": 0.5}, {"alpha": 0.5, "momRate": 0.1, "epsilon": 1e-2}):
        for name, value in change.items():
            setattr(optimizer, name, value)
            setattr(eager, name, value)
        for function, grid, arguments in launches:
            function._launch_kernel(grid, (256, 1, 1), arguments, 0, None)
        eager.update()
        for name, var in net.vars.items():
            assert np.array_equal(var.data.get(), eager_net.getVar(name).data.get()), change
    optimizer.update()
    eager.update()
    for name, var in net.vars.items():
        assert np.array_equal(var.data.get(), eager_net.getVar(name).data.get())


def test_launches_of_an_overridden_update_var_keep_their_tables(cuda, globalState):
    # launched again after a change of rates, which divides the flat buffer differently
    from pycuda import driver

    net, optimizer = make(cuda, [(300,), (77,)], globalState, kind=OneByOne, capturable=True)
    optimizer.update()
    tables = [packed.table for key, packed in optimizer._plan.alone.items() if key]
    launches = [group._plain for table in tables for group, _ in table._launched]
    assert len(launches) == (1 if globalState else 2)
    del tables
    net.getVar("v0000").learnRate = 0.5
    optimizer.update()
    before = {name: var.data.get() for name, var in net.vars.items()}
    for launch in launches:
        launch.queue(None)
    driver.Context.synchronize()  # the simulator reports reads of freed memory
    for name, var in net.vars.items():
        assert not np.array_equal(var.data.get(), before[name])


def test_capturable_needs_a_gpu():
    with pytest.raises(SetupError, match="capturable=True needs arrays on a GPU; the net's are puzzlelib_rmsprop.CPUArray"):
        RMSPropGraves(capturable=True).setupOn(Net(W=Variable(gpuarray.zeros(2))))


def test_live_hyper_parameters(kernels):
    live = kernels.LiveHyper()
    variable = extended.Variable(300, "float16", "float32", True)
    table = extended.table_of(kernels, variable, rates=False)
    table.follow(live)
    table.set_rates([(1.0, 1.0, 0.5)])
    variable.expected.wc = 0.5
    for t in range(3):
        hyper = HYPER | {"learnRate": 0.1 * t}
        live.write(Hyper(**hyper))
        variable.new_grad()
        options = StepOptions(operations=(Operation(SCALE, 0.5),), zeroGrad=True, decay=3.0)
        table.update(Hyper(9.0, 0.1, 0.1, 9.0), options=options)
        variable.expected.step(variable.grad, **hyper, ops=plain([Operation(SCALE, 0.5)]), decay=3.0)
        variable.check(zeroed=True)


def test_a_captured_launch_keeps_its_rows(kernels):
    # launch the same arguments again after the rates have changed
    live = kernels.LiveHyper()
    live.write(Hyper(**HYPER))
    variable = extended.Variable(300, "float32", "float32", rates=(0.5, 0.5))
    table = extended.table_of(kernels, variable, rates=False)
    table.follow(live)
    table.set_rates([(0.5, 0.5, 0.0)])
    variable.new_grad()
    table.update(Hyper(**HYPER), options=StepOptions(operations=(Operation(SCALE, 0.5),)))
    captured = table._launched[0][0]._extended
    table.set_rates([(0.0, 0.0, 0.0)])
    table.update(Hyper(**HYPER), options=StepOptions(operations=(Operation(SCALE, 0.5),)))
    captured.function._launch_kernel(captured.grid, (kernels.THREADS, 1, 1), captured.arguments, 0, None)
    for rates in ((0.5, 0.5), (0.0, 0.0), (0.5, 0.5)):
        variable.expected.rates = rates
        variable.step([Operation(SCALE, 0.5)])
    variable.check()
