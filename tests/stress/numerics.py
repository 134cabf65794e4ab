"""Compares a grid of hard gradients with float64, and the error with a bound that docs/error-derivation.md derives.

    python -m tests.stress.numerics                 a sample of the grid, which takes seconds
    python -m tests.stress.numerics --long          the whole grid, 3,000 steps per row
    python -m tests.stress.numerics --peers all     the same gradients in other libraries, or in some: --peers PyTorch Paddle
    python -m tests.stress.numerics ... --into FILE puts the tables between the marks in FILE

Exits with 1 if a row exceeds its bound, or is not finite where float64 is.
"""

import argparse
import os
import platform
import re
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.reference import Reference, coefficients
from tests.stress.numerics_grid import CONFIGS, GRADIENTS, LEARN_RATE, QUICK, WIDTH, gradients, parameters

# -------------------------------------------------------------------------------------------------- the bound


@dataclass(frozen=True)
class Format:
    """A floating-point format: unit roundoff, absolute error of tiny results, largest number."""

    u: float
    tiny: float
    largest: float

    @classmethod
    def of_arithmetic(cls, dtype: np.dtype) -> "Format":
        """The format of the arithmetic, which flushes subnormal results to zero."""
        info = np.finfo(dtype)
        return cls(float(info.eps) / 2, float(info.tiny), float(info.max))

    @classmethod
    def of_memory(cls, name: str) -> "Format":
        """The format of stored numbers, which keeps subnormals."""
        if name == "bfloat16":
            return cls(2.0**-8, 2.0**-133, float.fromhex("0x1.fep127"))
        info = np.finfo(name)
        return cls(float(info.eps) / 2, float(info.smallest_subnormal), float(info.max))


@dataclass(frozen=True)
class Row:
    """A row of the table: the options of the optimizer, and where it rounds.

    Attributes:
        param: dtype of the parameters and gradients.
        state: dtype of mg, variance and delta; by default that of the arithmetic.
        master: whether master weights are kept in the dtype of the arithmetic.
        keywords: arguments of RMSPropGraves.
    """

    param: str
    state: str | None = None
    master: bool = False
    keywords: dict[str, Any] = field(default_factory=dict)

    @property
    def real(self) -> np.dtype:
        """The dtype of the arithmetic."""
        return np.dtype(np.float64 if self.param == "float64" else np.float32)

    @property
    def exact(self) -> Any:
        """The dtype of the reference."""
        return np.longdouble if self.param == "float64" else np.float64


ROWS = {
    "float32": Row("float32"),
    "float64": Row("float64"),
    "float16": Row("float16"),
    "float16, master": Row("float16", master=True, keywords={"masterWeights": True}),
    "bfloat16": Row("bfloat16"),
    "bfloat16, master": Row("bfloat16", master=True, keywords={"masterWeights": True}),
}
BUFFERS = ("param", "mg", "variance", "delta")


class Bound:
    """The bound on each buffer's error, updated step by step with the exact values: docs/error-derivation.md, "The bound".

    Before a step, ``error[name]`` bounds |stored - exact| element by element. ``out[name]`` marks elements that have left
    the range of their format, exactly or by the bound; from then on the bound does not apply to them.
    """

    def __init__(self, row: Row, exact: Reference, learnRate: float, alpha: Any, momRate: Any, epsilon: Any) -> None:
        self.row, self.exact = row, exact
        self.real = Format.of_arithmetic(row.real)
        self.stored, self.state = Format.of_memory(row.param), Format.of_memory(row.state or row.real.name)
        # the exact values are rounded too, in a finer format, at most twice as often
        self.u = self.real.u + float(np.finfo(row.exact).eps)
        # the hyper-parameters are rounded too, by known amounts
        wide = row.exact
        self.given = [np.asarray(value).astype(wide) for value in (learnRate, alpha, momRate, epsilon)]
        self.off = [np.abs(x.astype(row.real).astype(wide) - x).astype(float) for x in self.given]
        self.taken = [x.astype(float) for x in coefficients(alpha, row.real)]
        self.moved = [taken.astype(wide) - x for taken, x in zip(self.taken, coefficients(alpha, wide), strict=True)]
        self.error = {name: np.zeros(exact.param.shape) for name in BUFFERS}
        self.carried = np.zeros(exact.param.shape)  # error of the master weights
        self.out = {name: np.zeros(exact.param.shape, bool) for name in BUFFERS}
        self.exact_out = np.zeros(exact.param.shape, bool)  # where the exact values have left the range

    def step(self, grad: np.ndarray) -> None:
        """Updates the exact values and the bound."""
        lr, _, mom, eps = (x.astype(float) for x in self.given)
        off_lr, _, off_mom, off_eps = self.off
        (a, b, gain), (off_a, off_b, off_gain) = self.taken, self.moved
        u, tiny, k = self.u, self.real.tiny, 1 + 8 * self.u
        exact, old, g = self.exact, self.error, grad.astype(self.row.exact)
        with np.errstate(all="ignore"):
            d = g - exact.mg
            in_mg = np.abs(off_a * exact.mg + off_b * g).astype(float)
            in_v = np.abs(off_a * exact.variance + off_gain * d * d).astype(float)
            mg, v, delta, d = (np.abs(x).astype(float) for x in (exact.mg, exact.variance, exact.delta, d))
            exact.step(g, *self.given)
            mg1, v1, delta1, param1, g = (
                np.abs(x).astype(float) for x in (exact.mg, exact.variance, exact.delta, exact.param, g)
            )
            e_g = np.where(g < tiny, g, 0.0)  # a subnormal gradient counts as zero
            e_mg = k * (a * old["mg"] + in_mg + u * (a * mg + b * g + mg1) + b * e_g) + 3 * tiny
            e_d = k * (old["mg"] + e_g + u * d) + tiny
            square = gain * (d + e_d) ** 2
            e_v = gain * (2 * d + e_d) * e_d + u * (a * v + 2 * square + v1)
            e_v = k * (a * old["variance"] + in_v + e_v + (3 + d + e_d) * tiny)
            x = v1 + eps
            e_x = k * (e_v + off_eps + u * x) + tiny
            least = np.maximum(x - e_x, eps - off_eps)  # a variance is never negative
            low, middle, high = np.sqrt(least), np.sqrt(x), np.sqrt(x + e_x)
            # |1/root - 1/middle| at either end, without cancellation
            worst = np.maximum((x - least) / low / middle / (low + middle), e_x / middle / high / (middle + high))
            e_w = k * (lr * g * worst + ((off_lr + 3 * u * lr) * g + lr * e_g + tiny) / low) + tiny
            e_delta = (
                k * (mom * old["delta"] + e_w + off_mom * (delta + old["delta"]) + u * (mom * delta + delta1)) + 2 * tiny
            )
            e_param = k * (self.carried + e_delta + u * param1) + 2 * tiny
            # buffers that are rounded when stored
            self.error = {
                name: self._stored(error, size, self.state, self.row.state is not None)
                for name, error, size in (("mg", e_mg, mg1), ("variance", e_v, v1), ("delta", e_delta, delta1))
            }
            self.error["param"] = self._stored(e_param, param1, self.stored, self.row.param != self.row.real.name)
            self.carried = e_param if self.row.master else self.error["param"]
            for name, size in (("mg", mg1), ("variance", v1), ("delta", delta1)):
                self.out[name] |= ~(size + self.error[name] < self.state.largest)
                self.exact_out |= ~(size < self.state.largest)
            self.exact_out |= ~(gain * d * d < self.real.largest) | ~(param1 < self.stored.largest)
            self.out["variance"] |= ~(square < self.real.largest)
            self.out["delta"] |= self.out["mg"] | self.out["variance"]
            self.out["param"] |= self.out["delta"] | ~(param1 + self.error["param"] < self.stored.largest)

    @staticmethod
    def _stored(error: np.ndarray, size: np.ndarray, form: Format, rounds: bool) -> np.ndarray:
        return error + form.u * (size + error) + form.tiny if rounds else error

    def ratio(self, name: str, actual: np.ndarray) -> np.ndarray:
        """Returns |actual - exact| / bound of a buffer: at most 1 if the bound holds; infinite for a NaN."""
        with np.errstate(all="ignore"):
            error = np.abs(actual.astype(self.row.exact) - getattr(self.exact, name)).astype(float)
            ratio = np.where(error == 0, 0.0, error / self.error[name])
        return np.where(self.out[name], 0.0, np.where(np.isnan(ratio), np.inf, ratio))


# ---------------------------------------------------------------------------------------------------- the runs


class Library:
    """This library: one optimizer per setting, each with one variable, on the backend of ``Config.backend``."""

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
    """The results of a run, for each element of each buffer.

    Attributes:
        ratio, last: error/bound: the largest over all steps, and that after the last step.
        relative: the last bound, relative to the largest exact magnitude so far.
        out: elements that may have left the range of their format, exactly or by the bound; their ratio is 0.
        infinite: elements that were not finite although the exact values were in range.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.ratio = {name: np.zeros(shape) for name in BUFFERS}
        self.last: dict[str, np.ndarray] = {}
        self.relative: dict[str, np.ndarray] = {}
        self.out: dict[str, np.ndarray] = {}
        self.infinite = {name: np.zeros(shape, bool) for name in BUFFERS}

    def failures(self) -> list[str]:
        """Describes each exceeded bound: buffer, gradient and number of elements."""
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
    """Runs every gradient with every setting; compares after every ``every`` steps."""
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
    """Returns two tables with a row per kind; ratios and bounds are those of elements that stay in range."""
    counted, bounds = [], []
    for label, result in results.items():
        inside = {name: ~result.out[name] for name in BUFFERS}
        kept = {name: result.ratio[name][inside[name]] for name in BUFFERS}
        counts = (
            sum(ratio.size for ratio in kept.values()),
            sum(result.out[name].sum() for name in BUFFERS),
            sum(result.infinite[name].sum() for name in BUFFERS),
            sum(np.sum(~(ratio <= 1)) for ratio in kept.values()),
        )
        worst = max(ratio.max() for ratio in kept.values())
        counted.append([label, *(f"{count:,}" for count in counts), f"{worst:.3f}"])
        bounds.append([label, *(f"{np.median(result.relative[name][inside[name]]):.0e}" for name in BUFFERS)])
    head = ["elements of buffers", "checked", "out of range", "not finite", "above the bound", "largest error/bound"]
    return f"{table(head, counted)}\n\n{table(['median bound', *BUFFERS], bounds)}"


def machine() -> str:
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    return f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores of {model}"


def put_into(path: str, mark: str, text: str) -> None:
    """Replaces the text between ``<!-- mark -->`` and ``<!-- end -->`` in a file."""
    with open(path) as file:
        before = file.read()
    after, count = re.subn(rf"(<!-- {mark} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{text}\n{m[2]}", before, flags=re.S)
    if count != 1:
        raise SystemExit(f"{path} has no place marked <!-- {mark} --> ... <!-- end -->")
    with open(path, "w") as file:
        file.write(after)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m tests.stress.numerics", description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help=f"all {len(CONFIGS)} settings, 3,000 steps")
    parser.add_argument("--steps", type=int, help="number of steps")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), metavar="ROW", default=list(ROWS), help=", ".join(ROWS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="run other libraries instead; all: all of them")
    parser.add_argument("--into", metavar="FILE", help="put the tables between the marks in FILE")
    options = parser.parse_args(argv)
    configs, steps = (CONFIGS, 3000) if options.long else (QUICK, 400)
    steps = options.steps or steps
    np.seterr(all="ignore")
    command = "python -m tests.stress.numerics " + " ".join(a for a in argv if a not in ("--into", options.into))
    said = f"`{command.strip()}`: {len(GRADIENTS)} gradients of {WIDTH} elements, {len(configs)} settings, {steps:,} steps"
    if options.peers:
        from tests.stress import peers

        text, failures = peers.compare(options.peers, configs, steps), []
        mark = "peers"
    else:
        from puzzlelib_rmsprop import Config

        Config.backend = Config.Backend[options.device]
        results = {}
        for label in options.rows:
            results[label] = run(ROWS[label], configs, steps, every=1 if options.device == "cpu" else 50)
            print(f"{label}: done", file=sys.stderr)
        text = summary(results)
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
