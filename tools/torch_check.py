"""Checks RMSpropGraves on PyTorch's CUDA tensors, and measures its step: python tools/torch_check.py

Compares every bit with the CPU, for all data types and options. Also checks that a step does not wait for the device,
streams, GradScaler, learning rates on the device, CUDA graphs, and several devices if there are. Then measures step() and
PyTorch's optimizers, with events on the device.

--dry-run uses the simulator in CUSIM_DIR with stand-ins for PyTorch's CUDA tensors, and measures nothing. The exit
status is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

FLOATS = ("float32", "float64", "float16", "bfloat16")
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "weight decay": {"lr": 0.01, "weight_decay": 0.1},
    "decoupled decay": {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True},
    "maximize": {"lr": 0.01, "maximize": True},
    "not centered": {"lr": 0.01, "centered": False, "initial_square_avg": 1.0},
    "bfloat16 state": {"lr": 0.01, "state_dtype": "bfloat16"},
    "8-bit state": {"lr": 0.01, "state_dtype": "int8"},
    "masters": {"lr": 1e-5, "master_weights": True},
}
STEPS = 6
ROUNDS = 50
dry = False


class LeftOut(Exception):
    """A check needs something that this machine does not have."""


# ------------------------------------------------------------------------------ differences in a dry run


def new_stream() -> Any:
    """Returns a stream that starts after all queued work."""
    import torch

    torch.cuda.synchronize()
    return torch.cuda.Stream()


@contextlib.contextmanager
def without_waiting() -> Iterator[None]:
    """Raises if code inside waits for the device: PyTorch reports its own waits, the step's are seen in time."""
    import torch

    torch.cuda.synchronize()
    if dry:
        from tests.cudasim import control

        control.reset()
        yield
        if control.blocking():
            raise AssertionError(f"waited: {control.blocking()}")
        return
    ended = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)  # clock cycles: about a second of work
    ended.record()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
    if ended.query():
        raise AssertionError("the step waited: it returned only after the device had finished its work")


@contextlib.contextmanager
def captured(graphs: list[Any], stream: Any) -> Iterator[None]:
    """Captures the work inside as a graph, and appends it to ``graphs``."""
    import torch

    gc.collect()  # a capture does not allow that arrays of earlier checks are freed
    gc.disable()
    try:
        if dry:
            from tests.torch.cuda_tensors import Graph

            graphs.append(Graph())
            with graphs[-1].captured(stream):
                yield
        else:
            graphs.append(torch.cuda.CUDAGraph())
            with torch.cuda.graph(graphs[-1], stream=stream):
                yield
    finally:
        gc.enable()


# --------------------------------------------------------------------------------------------------- the checks


def pair_of(*dtypes: str, **options: Any) -> Any:
    """Returns parameters of the given dtypes on the CPU and on the GPU, each with an optimizer."""
    import torch

    from tests.torch.cuda_pairs import Pair

    return Pair(*[getattr(torch, name) for name in dtypes], **options)


def check_numbers(options: dict[str, Any], dtypes: tuple[str, ...] = FLOATS, form: str = "clone") -> None:
    """Compares every bit of parameters and state, with new gradient tensors in each step."""
    import torch

    from tests.torch import cuda_pairs

    makes = {"clone": torch.clone, "transposed": cuda_pairs.transposed, "with gaps": cuda_pairs.with_gaps}
    pair = pair_of(*dtypes, form=makes[form], **options)
    pair.steps(STEPS)
    pair.check()


def check_side_stream() -> None:
    """Checks the order with the caller's work on a side stream."""
    import torch

    pair = pair_of(*FLOATS, lr=0.01)
    with torch.cuda.stream(new_stream()):
        pair.steps(STEPS)
    pair.check()


def check_no_wait() -> None:
    """Checks that the host does not wait, with new gradients, GradScaler's tensors and a learning rate on the device."""
    import torch

    pair = pair_of("float32", "float16")
    rate = torch.full((), 0.01, device=pair.where)
    pair.on_cuda.param_groups[0]["lr"] = rate
    pair.on_host.param_groups[0]["lr"] = torch.tensor(0.01)
    pair.on_cuda.grad_scale, pair.on_cuda.found_inf = (torch.full((), x, device=pair.where) for x in (1.0, 0.0))
    pair.steps(2)
    for change in (0.5, 2.0):
        pair.new_gradients()
        pair.on_host.param_groups[0]["lr"] *= change
        pair.on_host.step()
        with without_waiting():
            rate.mul_(change)
            pair.on_cuda.step()
    pair.check()


def check_scaler() -> None:
    """Checks steps with GradScaler, some of which it skips."""
    import torch

    pair = pair_of("float32", lr=0.01)
    scalers = [torch.amp.GradScaler(device, init_scale=2.0**10, growth_interval=2) for device in ("cpu", "cuda")]
    for number in range(6):
        scales = [s.scale(torch.ones((), device=d)).item() for s, d in zip(scalers, ("cpu", pair.where), strict=True)]
        pair.new_gradients(scales[0])
        if number in (1, 4):
            for params in (pair.host, pair.cuda):
                params[1].grad[2] = float("inf")
        for scaler, optimizer in zip(scalers, (pair.on_host, pair.on_cuda), strict=True):
            scaler.step(optimizer)
            scaler.update()
    pair.check()


def check_graph(own_gradients: bool, follows: bool = False) -> None:
    """Checks replays between eager steps. ``own_gradients``: the graph makes its gradients, as a captured backward does."""
    import torch

    pair, graphs, stream = pair_of("float32", "float16", lr=0.01, weight_decay=0.1), [], new_stream()
    rate = torch.full((), 0.01, device=pair.where)
    pair.on_cuda.param_groups[0]["capturable"] = True
    if follows:
        pair.on_cuda.param_groups[0]["lr"] = rate
    with torch.cuda.stream(stream):
        pair.steps(2)
    torch.cuda.synchronize()
    sources = [twin.grad for twin in pair.cuda]
    with captured(graphs, stream):
        if own_gradients:
            for twin, source in zip(pair.cuda, sources, strict=True):
                twin.grad = source.clone()
        pair.on_cuda.step()
    kept = [twin.grad for twin in pair.cuda]  # a replay reads them
    with torch.cuda.stream(stream):
        for number in range(STEPS):
            if follows:
                value = 0.1 / (1 + number)
                rate.fill_(value)
                pair.on_host.param_groups[0]["lr"] = torch.tensor(value)
            if number % 3 == 2:
                pair.step()
                continue
            for param, source in zip(pair.host, sources, strict=True):
                param.grad = pair.normal(param.shape, param.dtype)
                source.copy_(param.grad, non_blocking=True)
            graphs[0].replay()
            pair.on_host.step()
    pair.check()
    del kept


def check_devices() -> None:
    """Checks one optimizer with parameters on the CPU and on two devices."""
    import torch

    from puzzlelib_rmsprop.torch import RMSpropGraves

    if not dry and torch.cuda.device_count() < 2:
        raise LeftOut("there is only one GPU")
    pair = pair_of("float32", "float16", lr=0.01)
    places = [torch.device(("cpu", "cuda:0", "cuda:1")[number % 3]) for number in range(len(pair.host))]
    pair.cuda = [torch.nn.Parameter(p.detach().clone().to(d)) for p, d in zip(pair.host, places, strict=True)]
    pair.on_cuda = RMSpropGraves(pair.cuda, lr=0.01)
    with torch.cuda.device(1):
        for _ in range(STEPS):
            for param, twin, place in zip(pair.host, pair.cuda, places, strict=True):
                param.grad = pair.normal(param.shape, param.dtype)
                twin.grad = param.grad.clone().to(place)
            pair.on_host.step()
            pair.on_cuda.step()
        pair.check()


# -------------------------------------------------------------------------------------------------- the timings


def resnet18() -> list[tuple[int, ...]]:
    """Returns the shapes of ResNet-18's parameters: 62 tensors with 11,689,512 elements."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    before = 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            shapes += [(width, before if block == 0 else width, 3, 3), (width,), (width,)]
            shapes += [(width, width, 3, 3), (width,), (width,)]
            if block == 0 and before != width:
                shapes += [(width, before, 1, 1), (width,), (width,)]
        before = width
    return [*shapes, (1000, 512), (1000,)]


def step_of(name: str, shapes: list[tuple[int, ...]]) -> tuple[Callable[[], Any], list[Any]]:
    """Returns the step function of an optimizer, and its parameters."""
    import torch

    from puzzlelib_rmsprop.torch import RMSpropGraves

    params = [torch.nn.Parameter(torch.randn(shape, device="cuda")) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    rmsprop = {"lr": 1e-4, "alpha": 0.95, "momentum": 0.9, "centered": True}
    if name == "RMSpropGraves":
        return RMSpropGraves(params).step, params
    if name == "fused Adam":
        return torch.optim.Adam(params, fused=True).step, params
    step = torch.optim.RMSprop(params, foreach=True, **rmsprop).step
    return (torch.compile(step) if name == "compiled RMSprop" else step), params


def time_steps() -> None:
    """Prints the microseconds of a step: until the call returns on the host, and on the device."""
    import torch

    lists = {"ResNet-18: 62 tensors, 11,689,512": resnet18(), "6 tensors of 10,000": [(10_000,)] * 6}
    for title, shapes in lists.items():
        print(f"step() of {title}, float32, medians of {ROUNDS}:")
        for name in ("RMSpropGraves", "foreach RMSprop", "compiled RMSprop", "fused Adam"):
            try:
                step, params = step_of(name, shapes)
                for _ in range(5):
                    step()
            except Exception as error:  # such as a missing compiler for torch.compile
                print(f"  {name:17} left out: {' '.join(str(error).split())[:90]}")
                continue
            host, device = [], []
            for fresh in range(ROUNDS):
                if fresh % 2:  # new gradient tensors, as after zero_grad() and a backward pass
                    kept = [param.grad for param in params]
                    for param in params:
                        param.grad = param.grad.clone()
                    del kept
                torch.cuda.synchronize()
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                start = time.perf_counter()
                step()
                host.append(time.perf_counter() - start)
                end.record()
                torch.cuda.synchronize()
                device.append(begin.elapsed_time(end) * 1e-3)
            both = [f"{statistics.median(times) * 1e6:9.1f} us" for times in (host, device)]
            print(f"  {name:17} host {both[0]}   device {both[1]}")


# ------------------------------------------------------------------------------------------------------ main


def checks() -> Iterator[tuple[str, Callable[[], None]]]:
    """Yields the checks with their names."""
    for name, options in OPTIONS.items():
        yield f"same bits as on the CPU: {name}", lambda options=options: check_numbers(options)
    yield "same bits as on the CPU: complex", lambda: check_numbers({"lr": 0.01}, ("complex64", "complex128"))
    for form in ("transposed", "with gaps"):
        yield f"same bits as on the CPU: {form}", lambda form=form: check_numbers({"lr": 0.01}, form=form)
    yield "a side stream", check_side_stream
    yield "a step does not wait for the device", check_no_wait
    yield "GradScaler", check_scaler
    yield "a graph", lambda: check_graph(False)
    yield "a graph that makes its gradients", lambda: check_graph(True)
    yield "a graph follows the learning rate", lambda: check_graph(False, follows=True)
    yield "several devices", check_devices


def main() -> int:
    """Runs all checks, then the timings; returns 1 if a check failed or none could run."""
    global dry
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="use the simulator and stand-ins for PyTorch's tensors")
    dry = parser.parse_args().dry_run
    warnings.simplefilter("ignore")
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    surroundings: Any = contextlib.nullcontext()
    if dry:
        from tests import cudasim

        cudasim.activate(os.environ["CUSIM_DIR"])
        from tests.torch.cuda_tensors import cuda_of_torch

        surroundings = cuda_of_torch()
    import torch

    if not dry and not torch.cuda.is_available():
        print("this PyTorch finds no GPU")
        return 1
    print(f"PyTorch {torch.__version__} on {'stand-ins: a dry run' if dry else torch.cuda.get_device_name()}")
    passed = failed = left_out = 0
    with surroundings:
        for what, check in checks():
            try:
                check()
            except LeftOut as reason:
                left_out += 1
                print(f"left out: {what}: {reason}")
            except Exception as error:
                failed += 1
                print(f"FAIL: {what}: {type(error).__name__}: {' '.join(str(error).split())}")
            else:
                passed += 1
                print(f"ok: {what}")
        if not dry:
            time_steps()
    print(f"{passed} passed, {failed} failed, {left_out} left out")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
