"""A step captured in a CUDA graph: replays give the same result as the same number of steps."""

import gc

import pytest

torch = pytest.importorskip("torch")

from tests.torch.cuda_pairs import Pair, late, torch_cuda  # noqa: E402, F401
from tests.torch.cuda_tensors import Graph, Stream  # noqa: E402

DTYPES = [torch.float32, torch.float16]


def set_gradients(pair):
    """Writes new numbers into the gradients' memory."""
    for param, twin in zip(pair.host, pair.cuda, strict=True):
        param.grad = pair.normal(param.shape, param.dtype)
        twin.grad.copy_(param.grad, non_blocking=True)


class Captured:
    """A pair whose CUDA twin takes its steps by replaying a graph.

    Args:
        new_memory: the graph creates the gradients itself, as a captured backward pass does.
    """

    def __init__(self, machine, pair, warm_up=None, new_memory=False):
        self.pair, self.stream, self.graph = pair, Stream(), Graph()
        machine.synchronize()
        with torch.cuda.stream(warm_up or self.stream):
            pair.steps(2)
        machine.synchronize()
        gc.collect()
        gc.disable()
        try:
            with self.graph.captured(self.stream):
                if new_memory:
                    self.sources = [twin.grad for twin in pair.cuda]
                    for twin, source in zip(pair.cuda, self.sources, strict=True):
                        twin.grad = source.clone()
                pair.on_cuda.step()
        finally:
            gc.enable()
        if not new_memory:
            self.sources = [twin.grad for twin in pair.cuda]

    def replay(self, count=3):
        with torch.cuda.stream(self.stream):
            for _ in range(count):
                for param, source in zip(self.pair.host, self.sources, strict=True):
                    param.grad = self.pair.normal(param.shape, param.dtype)
                    source.copy_(param.grad, non_blocking=True)
                self.graph.replay()
                self.pair.on_host.step()


OPTIONS = {
    "defaults": {},
    "decay": {"weight_decay": 0.1},
    "masters": {"master_weights": True, "maximize": True},
}


@pytest.mark.parametrize("new_memory", [False, True], ids=["same gradients", "gradients of the graph"])
@pytest.mark.parametrize("options", OPTIONS)
def test_replays(late, options, new_memory):  # noqa: F811
    pair = Pair(*DTYPES, lr=0.01, capturable=False, **OPTIONS[options])
    pair.on_cuda.param_groups[0]["capturable"] = True
    captured = Captured(late, pair, new_memory=new_memory)
    captured.replay()
    pair.check()


def capturable(*dtypes, **options):
    pair = Pair(*dtypes, lr=0.01, **options)
    pair.on_cuda.param_groups[0]["capturable"] = True
    return pair


@pytest.mark.parametrize("new_memory", [False, True])
def test_eager_steps_between_replays(late, new_memory):  # noqa: F811
    """Their gradients are in other memory, which must not affect a replay."""
    pair = capturable(*DTYPES, weight_decay=0.1)
    captured = Captured(late, pair, new_memory=new_memory)
    for _ in range(3):
        captured.replay(2)
        with torch.cuda.stream(captured.stream):
            pair.steps(2)
    late.synchronize()
    pair.check()


def test_warmed_up_on_the_default_stream(late):  # noqa: F811
    pair = capturable(*DTYPES)
    captured = Captured(late, pair, warm_up=Stream(0, 0))
    captured.replay()
    pair.check()


def test_two_graphs(late):  # noqa: F811
    pair = capturable(*DTYPES, weight_decay=0.1)
    first, second = Captured(late, pair, new_memory=True), Captured(late, pair, new_memory=True)
    for captured in (first, second, first):
        captured.replay(2)
        late.synchronize()
    pair.check()


def test_replays_follow_a_learning_rate_on_the_device(late):  # noqa: F811
    pair = capturable(*DTYPES, torch.float64)
    rate = torch.tensor(0.01).to(pair.where)
    pair.on_cuda.param_groups[0]["lr"] = rate
    pair.on_host.param_groups[0]["lr"] = torch.tensor(0.01)
    captured = Captured(late, pair)
    for value in (0.01, 0.3, 0.002):
        pair.on_host.param_groups[0]["lr"] = torch.tensor(value)
        with torch.cuda.stream(captured.stream):
            rate.fill_(value)
        captured.replay(1)
    pair.check()


def test_a_captured_grad_scaler(late):  # noqa: F811
    pair = capturable(*DTYPES)
    for optimizer, device in ((pair.on_host, "cpu"), (pair.on_cuda, pair.where)):
        optimizer.grad_scale = torch.tensor(1.0).to(device)
        optimizer.found_inf = torch.tensor(0.0).to(device)
    captured = Captured(late, pair)
    for scale, found in ((2.0, 0.0), (2.0, 1.0), (0.5, 0.0)):
        for optimizer, stream in ((pair.on_host, Stream(0, 0)), (pair.on_cuda, captured.stream)):
            with torch.cuda.stream(stream):
                optimizer.grad_scale.fill_(scale)
                optimizer.found_inf.fill_(found)
        captured.replay(1)
    pair.check()
    assert pair.on_cuda.state[pair.cuda[0]]["step"].item() == 4


def refused(pair, message):
    stream = Stream()
    before = [twin.detach().clone() for twin in pair.cuda]
    torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match=message), Graph().captured(stream):
        pair.on_cuda.step()
    assert all(torch.equal(twin.cpu(), old.cpu()) for twin, old in zip(pair.cuda, before, strict=True))


def test_refused_without_capturable(torch_cuda):  # noqa: F811
    pair = Pair(*DTYPES)
    pair.steps(1)
    refused(pair, "group 0 has capturable=False")


def test_refused_without_a_step_before(torch_cuda):  # noqa: F811
    pair = capturable(*DTYPES)
    pair.new_gradients()
    refused(pair, "take one step with gradients for the same parameters first")
    assert not pair.on_cuda.state


def test_nothing_that_a_graph_reads_is_freed_with_the_next_plan(late):  # noqa: F811
    """The optimizer creates new tables for other parameters; the graph keeps using its own."""
    pair = capturable(*DTYPES)
    captured = Captured(late, pair)
    with torch.cuda.stream(captured.stream):
        pair.new_gradients()
        pair.host[0].grad = pair.cuda[0].grad = None
        pair.on_host.step()
        pair.on_cuda.step()
    gc.collect()
    captured.replay()
    late.synchronize()
    pair.check()
