"""Steps on CUDA run in the order of the caller's stream, and the host never waits."""

import gc

import pytest

torch = pytest.importorskip("torch")

from puzzlelib_rmsprop.kernels import foreign_stream  # noqa: E402
from puzzlelib_rmsprop.torch import RMSpropGraves  # noqa: E402
from tests.torch.cuda_pairs import Pair, late, torch_cuda  # noqa: E402, F401
from tests.torch.cuda_tensors import Stream  # noqa: E402

DTYPES = [torch.float32, torch.float16]


def trained(machine, stream, steps=4, **options):
    """Returns a pair whose CUDA twin was trained on a stream; None for the default stream."""
    pair = Pair(*DTYPES, lr=0.01, **options)
    machine.synchronize()
    if stream is None:
        pair.steps(steps)
    else:
        with torch.cuda.stream(stream):
            pair.steps(steps)
    machine.synchronize()
    return pair


@pytest.mark.parametrize("side", [False, True], ids=["default", "side"])
def test_gradients_in_new_memory_without_a_wait(simulator, torch_cuda, side):  # noqa: F811
    stream = Stream() if side else Stream(0, 0)
    pair = trained(torch_cuda, stream, 2)
    simulator.reset()
    with torch.cuda.stream(stream):
        pair.steps(3)
    assert simulator.blocking() == []
    assert simulator.counters()["copies"] > 0  # a new table
    pair.check()


@pytest.mark.parametrize("side", [False, True], ids=["default", "side"])
def test_a_steady_step_uploads_nothing(simulator, torch_cuda, side):  # noqa: F811
    stream = Stream() if side else Stream(0, 0)
    pair = trained(torch_cuda, stream, 2)
    before = simulator.leaks()
    simulator.reset()
    with torch.cuda.stream(stream):
        for _ in range(3):
            pair.on_host.step()
            pair.on_cuda.step()
    counted = simulator.counters()
    assert (counted["copies"], counted["allocations"], counted["blocking"]) == (0, 0, 0)
    assert counted["launches"] == 3 * len(DTYPES)
    assert simulator.leaks() == before
    pair.check()


def test_on_a_side_stream(late):  # noqa: F811
    trained(late, Stream()).check()


def test_streams_that_take_turns(late):  # noqa: F811
    pair, streams = Pair(*DTYPES, lr=0.01), [Stream(), Stream(), Stream(0, 0)]
    late.synchronize()
    for number in range(6):
        own, former = streams[number % 3], streams[number % 3 - 1]
        own.wait_stream(former)
        with torch.cuda.stream(own):
            pair.step()
    late.synchronize()
    pair.check()


def differs(pair):
    try:
        pair.check()
    except AssertionError:
        return True
    return False


def over_seeds(simulator, train):
    """Returns whether the results were wrong in any order of execution."""
    found = []
    for seed in range(8):
        simulator.seed(seed)
        found.append(differs(train()))
    return any(found)


def test_a_step_that_ignores_the_callers_stream_is_seen(simulator, torch_cuda, monkeypatch):  # noqa: F811
    real = foreign_stream.launching_on
    assert not over_seeds(simulator, lambda: trained(torch_cuda, Stream()))
    monkeypatch.setattr(foreign_stream, "launching_on", lambda handle: real(0))
    assert over_seeds(simulator, lambda: trained(torch_cuda, Stream()))


def test_a_stream_that_does_not_wait_for_the_step_is_seen(simulator, torch_cuda, monkeypatch):  # noqa: F811
    order = foreign_stream._Joint.order

    def before_only(self, first, second):
        if second == self.stream.handle:
            order(self, first, second)

    monkeypatch.setattr(foreign_stream._Joint, "order", before_only)
    assert over_seeds(simulator, lambda: trained(torch_cuda, Stream()))


def test_a_table_out_of_order_is_seen(simulator, torch_cuda, monkeypatch):  # noqa: F811
    from puzzlelib_rmsprop.kernels import cuda_memory  # exists only with PyCUDA

    real = cuda_memory.send
    monkeypatch.setattr(
        "puzzlelib_rmsprop.kernels.cuda.send", lambda memory, host, stream: real(memory, host, cuda_memory._stream())
    )
    assert over_seeds(simulator, lambda: trained(torch_cuda, Stream()))


def test_tensors_freed_while_queued(late):  # noqa: F811
    """Gradients, optimizers and tables are freed while the step is queued, and later tensors reuse their memory."""
    pair = Pair(*DTYPES, lr=0.01, weight_decay=0.1)
    late.synchronize()
    with torch.cuda.stream(Stream()):
        for _ in range(3):
            pair.step()
            for param in pair.cuda:
                param.grad = None
            noise = [torch.full_like(param, float("nan")) for param in pair.cuda]
            del noise
        state = pair.on_cuda.state_dict()
        pair.on_cuda = RMSpropGraves(pair.cuda, lr=0.01, weight_decay=0.1)
        gc.collect()
        pair.on_cuda.load_state_dict(state)
        del state
        pair.steps(2)
    late.synchronize()
    pair.check()


def test_a_large_table_is_sent_in_parts(simulator, torch_cuda, monkeypatch):  # noqa: F811
    # for a copy of more than 64 KiB the driver may wait for the stream
    from pycuda import driver

    sizes, real = [], driver.memcpy_htod_async

    def sent(target, source, stream=None):
        sizes.append(source.nbytes)
        real(target, source, stream)

    monkeypatch.setattr(driver, "memcpy_htod_async", sent)
    pair = Pair(torch.float32, shapes=[(3,)] * 700, lr=0.01)
    pair.steps(2)
    pair.check()
    assert len(sizes) > 4
    assert max(sizes) <= 2**16


def test_weight_decay_that_changes_at_each_step_makes_nothing_wait(simulator, torch_cuda):  # noqa: F811
    pair = trained(torch_cuda, None, 2, weight_decay=0.1)
    simulator.reset()
    for number in range(3):
        for optimizer in (pair.on_host, pair.on_cuda):
            optimizer.param_groups[0]["weight_decay"] = 0.2 + number
        pair.step()
    assert simulator.blocking() == []
    pair.check()


def test_parameters_without_gradients_now_and_then_wait_only_for_tables(simulator, torch_cuda):  # noqa: F811
    pair = trained(torch_cuda, Stream(0, 0), 2)
    pair.new_gradients()
    pair.host[0].grad = pair.cuda[0].grad = None
    pair.on_host.step()
    simulator.reset()
    pair.on_cuda.step()
    # the tables' own stream, not that of the training, whose step counts are not read either
    assert set(simulator.blocking()) <= {"cuStreamSynchronize", "cuMemFree"}
    pair.check()
