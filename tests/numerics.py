"""A grid of hard gradients against float64, with a bound on the error that is derived in docs/numerics.md.

    python -m tests.numerics                     a sample of the grid: seconds
    python -m tests.numerics --long              all of it, 3,000 steps a row
    python -m tests.numerics --peers all         the same gradients through other libraries; --peers PyTorch Paddle: some
    python -m tests.numerics ... --into FILE     puts the tables between the marks in FILE

Exits with 1 where a row breaks its bound, or is not finite where float64 is.
"""

import argparse
import itertools
import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from tests.reference import Reference

# --------------------------------------------------------------------------------------------------- the grid

ALPHAS = (0.0, 0.5, 0.95, 0.99, 0.999)
MOM_RATES = (0.0, 0.9, 0.99)
EPSILONS = (1e-30, 1e-10, 1e-8, 1e-4)
LEARN_RATE = 1e-4
CONFIGS = np.array(list(itertools.product(ALPHAS, MOM_RATES, EPSILONS)))
# the defaults, those of PyTorch's kind, and the corners
QUICK = np.array(
    [(0.95, 0.9, 1e-4), (0.99, 0.0, 1e-8), (0.999, 0.99, 1e-30), (0.0, 0.9, 1e-10), (0.5, 0.99, 1e-4), (0.999, 0.0, 1e-8)]
)
WIDTH = 8  # elements a gradient, each with noise and a sign of its own

Make = Callable[[np.random.Generator, int, np.finfo], np.ndarray]


def _near(size: float, noise: float) -> Make:
    return lambda rng, steps, info: _signs() * size * (1 + noise * rng.standard_normal((steps, WIDTH)))


def _signs() -> np.ndarray:
    return np.where(np.arange(WIDTH) % 2, -1.0, 1.0)


def _normal(rng: np.random.Generator, steps: int) -> np.ndarray:
    return rng.standard_normal((steps, WIDTH))


def _drop(size: float, noise: float) -> Make:
    def make(rng: np.random.Generator, steps: int, info: np.finfo) -> np.ndarray:
        return np.where(np.arange(steps)[:, None] < steps // 3, _near(size, noise)(rng, steps, info), 0.0)

    return make


def _spike(rng: np.random.Generator, steps: int, info: np.finfo) -> np.ndarray:
    gradient = _normal(rng, steps)
    gradient[steps // 3] = _signs() * _largest(info)
    return gradient


def _largest(info: np.finfo) -> float:
    """About the largest gradient whose square the arithmetic can hold; all of them, in float16."""
    return {"float16": 65504.0, "float64": 1e150}.get(np.dtype(info.dtype).name, 1e18)


def _subnormal(rng: np.random.Generator, steps: int, info: np.finfo) -> np.ndarray:
    return _signs() * rng.integers(1, 1000, (steps, WIDTH)) * float(info.smallest_subnormal)


def _switch(first: Make, second: Make) -> Make:
    def make(rng: np.random.Generator, steps: int, info: np.finfo) -> np.ndarray:
        return np.where(np.arange(steps)[:, None] < steps // 3, first(rng, steps, info), second(rng, steps, info))

    return make


def _alternating(size: float, noise: float) -> Make:
    return lambda rng, steps, info: _near(size, noise)(rng, steps, info) * np.where(np.arange(steps) % 2, -1, 1)[:, None]


def _sparse(every: int, size: float) -> Make:
    return lambda rng, steps, info: size * _normal(rng, steps) * (rng.integers(0, every, (steps, WIDTH)) == 0)


def _halves(rng: np.random.Generator, steps: int, info: np.finfo) -> np.ndarray:
    return rng.choice([65504.0, -65504.0, 2.0**-24, -(2.0**-24), 2.0**-14, 1.0, 0.0], (steps, WIDTH))


GRADIENTS: dict[str, Make] = {
    "normal": lambda rng, steps, info: _normal(rng, steps),
    **{
        f"{size:g}, noise {noise:g}": _near(size, noise)
        for size in (1, 10, 100, 1e4)
        for noise in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
    },
    **{f"constant {size:g}": _near(size, 0) for size in (3e-5, 0.1, 1, 10, 100, 1e4)},
    "normal, then 0": _switch(lambda rng, steps, info: _normal(rng, steps), _near(0, 0)),
    "1, noise 0.001, then 0": _drop(1, 1e-3),
    "1e+04, noise 1e-05, then 0": _drop(1e4, 1e-5),
    "subnormal": _subnormal,
    "normal, then subnormal": _switch(lambda rng, steps, info: _normal(rng, steps), _subnormal),
    "one huge spike": _spike,
    "alternating 1": _alternating(1, 0),
    "alternating 1e+04": _alternating(1e4, 0),
    "alternating 100, noise 1e-05": _alternating(100, 1e-5),
    "1 in 100 not 0": _sparse(100, 1),
    "1 in 1000 not 0": _sparse(1000, 100),
    "float16's limits, at random": _halves,
    "constant 65504": _near(65504, 0),
    "65504, noise 0.001": lambda rng, steps, info: np.clip(_near(65504, 1e-3)(rng, steps, info), -65504, 65504),
    "constant 2^-24": _near(2.0**-24, 0),
}


def gradients(steps: int, dtype: Any, seed: int = 0) -> np.ndarray:
    """(steps, WIDTH * len(GRADIENTS)): every gradient of the grid, as parameters of ``dtype`` get it."""
    rng, info = np.random.default_rng(seed), ml_dtypes.finfo(dtype)
    return np.concatenate([make(rng, steps, info) for make in GRADIENTS.values()], axis=1).astype(dtype)


def parameters(dtype: Any) -> np.ndarray:
    """Where every gradient's parameters start."""
    return np.random.default_rng(1).uniform(-1, 1, WIDTH * len(GRADIENTS)).astype(dtype)


# -------------------------------------------------------------------------------------------------- the bound


@dataclass(frozen=True)
class Format:
    """A floating-point format: unit roundoff, smallest subnormal, largest number."""

    u: float
    tiny: float
    largest: float

    @classmethod
    def of(cls, name: str) -> "Format":
        if name == "bfloat16":
            return cls(2.0**-8, 2.0**-133, float.fromhex("0x1.fep127"))
        info = np.finfo(name)
        return cls(float(info.eps) / 2, float(info.smallest_subnormal), float(info.max))


@dataclass(frozen=True)
class Row:
    """One kind of row: what the optimizer is made with, and where it rounds.

    Attributes:
        param: dtype of the parameters and gradients.
        state: dtype of mg, ms and delta; that of the arithmetic by default.
        master: whether a copy of the parameters is kept in the dtype of the arithmetic.
        keywords: for RMSPropGraves.
    """

    param: str
    state: str | None = None
    master: bool = False
    keywords: dict[str, Any] = field(default_factory=dict)

    @property
    def real(self) -> np.dtype:
        """Of the arithmetic."""
        return np.dtype(np.float64 if self.param == "float64" else np.float32)

    @property
    def exact(self) -> Any:
        """Of the reference."""
        return np.longdouble if self.param == "float64" else np.float64


ROWS = {
    "float32": Row("float32"),
    "float64": Row("float64"),
    "float16": Row("float16"),
    "float16, master": Row("float16", master=True, keywords={"masterWeights": True}),
    "bfloat16": Row("bfloat16"),
    "bfloat16, master": Row("bfloat16", master=True, keywords={"masterWeights": True}),
    "float16, float16 state": Row("float16", state="float16", keywords={"stateDtype": "float16"}),
}
BUFFERS = ("param", "mg", "ms", "delta")


class Bound:
    """The bound on each buffer's error, carried along beside the exact values: docs/numerics.md, "The bound".

    Before a step, ``error[name]`` bounds |stored - exact| element by element. ``out[name]`` marks what has left the range
    of its format, exactly or by the bound, and says nothing from there on.
    """

    def __init__(self, row: Row, exact: Reference, learnRate: float, alpha: Any, momRate: Any, epsilon: Any) -> None:
        self.row, self.exact = row, exact
        self.real, self.stored, self.state = (
            Format.of(name) for name in (row.real.name, row.param, row.state or row.real.name)
        )
        self.hyper = learnRate, alpha, momRate, epsilon
        # the hyper-parameters are rounded too, and by how much is known
        given = [np.asarray(value, np.float64) for value in (learnRate, alpha, 1 - np.asarray(alpha), momRate, epsilon)]
        taken = [np.asarray(value).astype(row.real) for value in (learnRate, alpha, alpha, momRate, epsilon)]
        taken[2] = row.real.type(1) - taken[1]
        self.off = [t.astype(row.exact) - g for t, g in zip(taken, given, strict=True)]
        self.off[2] = taken[2].astype(row.exact) - (1 - np.asarray(alpha).astype(row.exact))
        self.off = [np.abs(value).astype(np.float64) if i in (0, 3, 4) else value for i, value in enumerate(self.off)]
        # the exact values are rounded as well, in their own, finer format
        self.u = self.real.u + float(np.finfo(row.exact).eps) / 2
        self.error = {name: np.zeros(exact.param.shape) for name in BUFFERS}
        self.carried = np.zeros(exact.param.shape)  # of the master copy
        self.out = {name: np.zeros(exact.param.shape, bool) for name in BUFFERS}
        self.exact_out = np.zeros(exact.param.shape, bool)  # where the exact values themselves have left the range

    def step(self, grad: np.ndarray) -> None:
        """Takes the exact step, and the bound's."""
        lr, a, mom, eps = self.hyper
        off_lr, off_a, off_b, off_mom, off_eps = self.off
        u, tiny, k, b = self.u, self.real.tiny, 1 + 8 * self.u, 1 - a
        exact, g = self.exact, grad.astype(self.row.exact)
        with np.errstate(all="ignore"):
            in_mg, in_ms = (
                np.abs(x).astype(float) for x in (off_a * exact.mg + off_b * g, off_a * exact.ms + off_b * g * g)
            )
            mg, ms, delta = (np.abs(x).astype(float) for x in (exact.mg, exact.ms, exact.delta))
            exact.step(g, *self.hyper[:1], *(np.asarray(x).astype(self.row.exact) for x in self.hyper[1:]))
            v = np.maximum(exact.ms - exact.mg * exact.mg, 0).astype(float)
            mg1, ms1, delta1, param1, g = (
                np.abs(x).astype(float) for x in (exact.mg, exact.ms, exact.delta, exact.param, g)
            )
            old = self.error
            e_mg = k * (a * old["mg"] + in_mg + u * (a * mg + b * g + mg1)) + 2 * tiny
            e_ms = k * (a * old["ms"] + in_ms + u * (a * ms + 2 * b * g * g + ms1)) + (2 + g) * tiny
            e_v = k * (e_ms + (2 * mg1 + e_mg) * e_mg + u * (mg1 * mg1 + v)) + 2 * tiny
            x = v + eps
            e_x = k * (e_v + off_eps + u * x) + tiny
            least = np.maximum(x - e_x, eps - off_eps)  # the clamp keeps what is under the root above epsilon
            low, middle, high = np.sqrt(least), np.sqrt(x), np.sqrt(x + e_x)
            # |1/root - 1/middle| at either end, without cancellation
            worst = np.maximum((x - least) / low / middle / (low + middle), e_x / middle / high / (middle + high))
            e_w = k * (lr * g * worst + ((off_lr + 3 * u * lr) * g + tiny) / low) + tiny
            e_delta = k * (mom * old["delta"] + e_w + off_mom * delta + u * (mom * delta + delta1)) + 2 * tiny
            e_param = k * (self.carried + e_delta + u * param1)
            # what is rounded to be stored
            self.error = {
                name: self._stored(error, size, self.state, self.row.state is not None)
                for name, error, size in (("mg", e_mg, mg1), ("ms", e_ms, ms1), ("delta", e_delta, delta1))
            }
            self.error["param"] = self._stored(e_param, param1, self.stored, self.row.param != self.row.real.name)
            self.carried = e_param if self.row.master else self.error["param"]
            for name, size, form in (("mg", mg1, self.state), ("ms", ms1, self.state), ("delta", delta1, self.state)):
                self.out[name] |= ~(size + self.error[name] < form.largest)
                self.exact_out |= ~(size < form.largest)
            self.exact_out |= ~(g * g < self.real.largest) | ~(param1 < self.stored.largest)
            self.out["ms"] |= ~(g * g < self.real.largest)
            self.out["delta"] |= self.out["mg"] | self.out["ms"]
            self.out["param"] |= self.out["delta"] | ~(param1 + self.error["param"] < self.stored.largest)

    @staticmethod
    def _stored(error: np.ndarray, size: np.ndarray, form: Format, rounds: bool) -> np.ndarray:
        return error + form.u * (size + error) + form.tiny if rounds else error

    def ratio(self, name: str, actual: np.ndarray) -> np.ndarray:
        """|actual - exact| / bound of one buffer: at most 1 where the bound is met. A NaN is infinitely far."""
        with np.errstate(all="ignore"):
            error = np.abs(actual.astype(self.row.exact) - getattr(self.exact, name)).astype(float)
            ratio = np.where(error == 0, 0.0, error / self.error[name])
        return np.where(self.out[name], 0.0, np.where(np.isnan(ratio), np.inf, ratio))


# ------------------------------------------------------------------------------------------------ what is run


class Library:
    """This library: an optimizer for each setting, each with one variable. Arrays lie where ``Config.backend`` says."""

    def __init__(self, row: Row, configs: np.ndarray, params: np.ndarray) -> None:
        from puzzlelib_rmsprop import RMSPropGraves, Variable, gpuarray
        from tests.standins import Net

        self._grad = gpuarray.to_gpu(np.zeros_like(params[0]))
        self._all = []
        for config, param in zip(configs, params, strict=True):
            alpha, momRate, epsilon = config.tolist()
            var = Variable(gpuarray.to_gpu(param), grad=self._grad)
            optimizer = RMSPropGraves(LEARN_RATE, alpha, momRate, epsilon, **row.keywords)
            optimizer.setupOn(Net(v=var))
            self._all.append((optimizer, var))

    def step(self, grad: np.ndarray) -> None:
        self._grad.set(grad)
        for optimizer, _ in self._all:
            optimizer.update()

    def read(self, name: str) -> np.ndarray:
        arrays = (var.data if name == "param" else optimizer.states["v"][name] for optimizer, var in self._all)
        return np.stack([array.get() for array in arrays])


class Result:
    """What was found, for each element of each buffer.

    Attributes:
        ratio, last: error/bound, the largest over all steps, and that after the last.
        relative: the last bound, relative to the largest exact magnitude so far.
        out: what may have left the range of its format, exactly or by the bound; there the ratio is 0.
        infinite: what was not finite, where the exact values were in range.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.ratio = {name: np.zeros(shape) for name in BUFFERS}
        self.last: dict[str, np.ndarray] = {}
        self.relative: dict[str, np.ndarray] = {}
        self.out: dict[str, np.ndarray] = {}
        self.infinite = {name: np.zeros(shape, bool) for name in BUFFERS}

    def failures(self) -> list[str]:
        """What broke its bound: buffer, gradient and the number of elements."""
        found = []
        for name in BUFFERS:
            bad = ~(self.ratio[name] <= 1)
            for label, part in zip(GRADIENTS, np.split(bad, len(GRADIENTS), axis=1), strict=True):
                if part.any():
                    worst = np.split(self.ratio[name], len(GRADIENTS), axis=1)[list(GRADIENTS).index(label)].max()
                    found.append(
                        f"{name}, gradient {label}: {part.sum()} of {part.size} elements, worst {worst:.3g} x bound"
                    )
        return found


def run(row: Row, configs: np.ndarray, steps: int, make: Any = Library, every: int = 1) -> Result:
    """Runs every gradient through every setting; compares after each step, or after every so many."""
    start = np.broadcast_to(parameters(row.param), (len(configs), len(GRADIENTS) * WIDTH))
    bound = Bound(row, Reference(start, row.exact), LEARN_RATE, *(configs.T[:, :, None]))
    tested, result = make(row, configs, start), Result(start.shape)
    largest = {name: np.zeros(start.shape) for name in BUFFERS}
    for number, grad in enumerate(gradients(steps, row.param)):
        tested.step(grad)
        bound.step(grad)
        for name in BUFFERS:
            np.maximum(largest[name], np.abs(getattr(bound.exact, name)).astype(float), out=largest[name])
        if number < 3 or (number + 1) % every == 0 or number == steps - 1:
            for name in BUFFERS:
                actual = tested.read(name)
                result.last[name] = bound.ratio(name, actual)
                np.maximum(result.ratio[name], result.last[name], out=result.ratio[name])
                result.infinite[name] |= ~np.isfinite(actual) & ~bound.exact_out
    result.out = bound.out
    result.relative = {name: bound.error[name] / np.maximum(largest[name], 1e-300) for name in BUFFERS}
    return result


# ------------------------------------------------------------------------------------------------- the tables


def table(head: list[str], body: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] + ["---:"] * (len(head) - 1), *body))


def summary(results: dict[str, Result]) -> str:
    """A row for each kind of row and each buffer."""
    body = []
    for label, result in results.items():
        for name in BUFFERS:
            inside = ~result.out[name]
            kept, last = result.ratio[name][inside], result.last[name][inside]
            counts = (kept.size, result.out[name].sum(), result.infinite[name].sum(), np.sum(~(kept <= 1)))
            ratios = (kept.max(), np.median(kept), last.max(), np.median(last))
            relative = np.median(result.relative[name][inside])
            cells = [*(f"{count:,}" for count in counts), *(f"{ratio:.3f}" for ratio in ratios), f"{relative:.1e}"]
            body.append([f"{label}: {name}", *cells])
    head = ["", "elements", "out of range", "not finite", "above the bound", "error/bound: largest", "median"]
    head += ["last step: largest", "median", "bound/largest value, median"]
    return table(head, body)


def by_gradient(results: dict[str, Result]) -> str:
    """The largest error/bound of delta and of the parameter, for each gradient."""
    body = []
    for number, label in enumerate(GRADIENTS):
        cells = []
        for result in results.values():
            for name in ("delta", "param"):
                part = slice(number * WIDTH, (number + 1) * WIDTH)
                out, ratio = result.out[name][:, part], result.ratio[name][:, part]
                cells.append("out of range" if out.all() else f"{ratio[~out].max():.2g}")
        body.append([label, *cells])
    return table(["gradient", *(f"{label}: {name}" for label in results for name in ("delta", "param"))], body)


def machine() -> str:
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    return f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores of {model}"


def put_into(path: str, mark: str, text: str) -> None:
    """Replaces what stands between ``<!-- mark -->`` and ``<!-- end -->`` in a file."""
    with open(path) as file:
        before = file.read()
    after, count = re.subn(rf"(<!-- {mark} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{text}\n{m[2]}", before, flags=re.S)
    if count != 1:
        raise SystemExit(f"{path} has no place marked <!-- {mark} --> ... <!-- end -->")
    with open(path, "w") as file:
        file.write(after)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m tests.numerics", description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help=f"all {len(CONFIGS)} settings, 3,000 steps")
    parser.add_argument("--steps", type=int, help="another number of steps")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), metavar="ROW", default=list(ROWS), help=", ".join(ROWS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--peers", nargs="+", metavar="NAME", help="other libraries in place of the bound; all: each that is here"
    )
    parser.add_argument("--into", metavar="FILE", help="put the tables between the marks in FILE")
    options = parser.parse_args(argv)
    configs, steps = (CONFIGS, 3000) if options.long else (QUICK, 400)
    steps = options.steps or steps
    np.seterr(all="ignore")
    command = "python -m tests.numerics " + " ".join(a for a in argv if a not in ("--into", options.into))
    said = f"`{command.strip()}`: {len(GRADIENTS)} gradients of {WIDTH} elements, {len(configs)} settings, {steps:,} steps"
    if options.peers:
        from tests import peers

        text, failures = peers.compare(options.peers, configs, steps), []
        mark = "peers"
    else:
        from puzzlelib_rmsprop import Config

        Config.backend = Config.Backend[options.device]
        results = {}
        for label in options.rows:
            results[label] = run(ROWS[label], configs, steps, every=1 if options.device == "cpu" else 50)
            print(f"{label}: done", file=sys.stderr)
        text = f"{summary(results)}\n\n{by_gradient(results)}"
        failures = [f"{label}: {failure}" for label, result in results.items() for failure in result.failures()]
        mark = "grid"
    text = f"{said}. NumPy {np.__version__}, Python {platform.python_version()}, {machine()}.\n\n{text}"
    print(text)
    if options.into:
        put_into(options.into, mark, text)
    for failure in failures:
        print("BROKEN", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
