"""The quick version of the grid in tests/numerics.py; and that its check fails on a kernel that rounds, or is, wrong."""

import numpy as np
import pytest

from puzzlelib_rmsprop import Config, RMSPropGraves, Variable, gpuarray
from tests import numerics
from tests.numerics import BUFFERS, CONFIGS, LEARN_RATE, QUICK, ROWS, Row, run
from tests.standins import Net


@pytest.mark.parametrize("row", ROWS)
def test_within_the_bound(row, backend):
    on_cpu = Config.backend is Config.Backend.cpu
    result = run(ROWS[row], QUICK, 400 if on_cpu else 40, every=1 if on_cpu else 10)
    assert result.failures() == []
    for name in BUFFERS:
        # float16 leaves its range where a step is longer than the exact one; the others have no such excuse
        if ROWS[row].param != "float16":
            assert not result.infinite[name].any()
            assert not result.out[name].any()
        # it says something: most errors are within two orders of magnitude of their bound
        assert np.median(result.ratio[name][~result.out[name]]) > 0.01


def test_bfloat16_state_stays_finite(backend):
    # it rounds at random, so a bound of each error says little; but nothing may leave the range that float64 stays in
    on_cpu = Config.backend is Config.Backend.cpu
    row = Row("float32", state="bfloat16", keywords={"stateDtype": "bfloat16"})
    result = run(row, QUICK, 400 if on_cpu else 40, every=1 if on_cpu else 10)
    for name in BUFFERS:
        assert not result.infinite[name].any(), name


@pytest.mark.parametrize("level", [1.003, 1e4 / 3])
def test_bfloat16_mean_is_within_azumas_bound(level, backend):
    # docs/numerics.md: every element's error is bounded, and their mean goes to zero with their number
    rng = np.random.default_rng(5)
    optimizer = RMSPropGraves(alpha=0.95, stateDtype="bfloat16", seed=1)
    var = Variable(gpuarray.to_gpu(np.ones(4096, np.float32)))
    optimizer.setupOn(Net(W=var))
    exact, largest = np.zeros(4096), np.zeros(4096)
    for _ in range(200 if Config.backend is Config.Backend.cpu else 80):
        grad = (level * (1 + 1e-3 * rng.standard_normal(4096))).astype(np.float32)
        var.grad.set(grad)
        optimizer.update()
        exact = 0.95 * exact + 0.05 * grad
        largest = np.maximum(largest, np.abs(exact))
    mg = optimizer.states["W"]["mg"]
    error = (mg if isinstance(mg, np.ndarray) else mg.get()).astype(np.float64) - exact
    assert (np.abs(error) < 8 * 2.0**-7 * largest / np.sqrt(1 - 0.95**2)).all()
    assert error.std() > 0
    assert abs(error.mean()) < 6 * error.std() / np.sqrt(error.size)


class Written:
    """The rule in NumPy and float32, with a fault."""

    def __init__(self, fault):
        self.fault = fault

    def __call__(self, row, configs, params):
        self.alpha, self.momRate, self.epsilon = (column[:, None].astype(np.float32) for column in configs.T)
        self.param = np.array(params)
        self.mg, self.ms, self.delta = (np.zeros_like(self.param) for _ in range(3))
        return self

    def step(self, g):
        alpha, fault, lr = self.alpha, self.fault, np.float32(LEARN_RATE)
        beta = np.float32(1) - alpha
        if fault == "beta of another alpha":
            beta = (beta * np.float32(1 + 1e-6)).astype(np.float32)
        with np.errstate(all="ignore"):
            self.mg = alpha * self.mg + beta * g
            self.ms = alpha * self.ms + beta * g * g
            if fault == "ms in float16":
                self.ms = self.ms.astype(np.float16).astype(np.float32)
            if fault == "mg to 20 bits":
                self.mg = (self.mg.view(np.uint32) & np.uint32(0xFFFFFFF0)).view(np.float32)
            variance = self.ms - self.mg * self.mg
            if fault != "no clamp":
                variance = np.maximum(variance, np.float32(0))
            root = np.sqrt(variance + self.epsilon)
            if fault == "epsilon beside the root":
                root = np.sqrt(variance) + np.sqrt(self.epsilon)
            if fault == "the variance before the step":
                root = np.sqrt(np.maximum((self.ms - beta * g * g) / alpha.clip(0.1) - self.mg**2, 0) + self.epsilon)
            self.delta = self.momRate * self.delta + lr * g / root
            self.param = self.param + (self.momRate * self.delta if fault == "momentum twice" else self.delta)
            if fault == "param in float16":
                self.param = self.param.astype(np.float16).astype(np.float32)

    def read(self, name):
        return getattr(self, name)


def test_the_formula_written_out_is_within_the_bound():
    assert run(Row("float32"), QUICK, 100, Written(None)).failures() == []


@pytest.mark.parametrize(
    ("fault", "buffer"),
    [
        ("no clamp", "delta"),
        ("epsilon beside the root", "delta"),
        ("ms in float16", "ms"),
        ("mg to 20 bits", "mg"),
        ("beta of another alpha", "mg"),
        ("the variance before the step", "delta"),
        ("momentum twice", "param"),
        ("param in float16", "param"),
    ],
)
def test_faults_break_the_bound(fault, buffer):
    failures = run(Row("float32"), QUICK, 100, Written(fault)).failures()
    assert any(failure.startswith(f"{buffer}, ") for failure in failures)


def test_a_nan_is_above_every_bound():
    bound = numerics.Bound(ROWS["float32"], numerics.Reference(np.zeros(1)), LEARN_RATE, 0.95, 0.9, 1e-4)
    bound.step(np.ones(1))
    assert np.isinf(bound.ratio("param", np.array([np.nan], np.float32)))


def test_the_grid_has_what_it_says():
    assert len(CONFIGS) == 5 * 3 * 4
    made = numerics.gradients(300, np.float32)
    assert np.isfinite(made).all()
    assert 0 < np.abs(made[made != 0]).min() < np.finfo(np.float32).tiny
    assert np.abs(made).max() == np.float32(1e18)


def test_the_tables_name_every_row_and_gradient(tmp_path):
    results = {label: run(row, QUICK[:1], 3) for label, row in ROWS.items()}
    text = f"{numerics.summary(results)}\n{numerics.by_gradient(results)}"
    assert all(label in text for label in (*ROWS, *numerics.GRADIENTS))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- grid -->\nold\n<!-- end -->\nafter\n")
    numerics.put_into(str(page), "grid", text)
    assert page.read_text() == f"before\n<!-- grid -->\n{text}\n<!-- end -->\nafter\n"


def test_the_peers_table():
    from tests import peers

    text = peers.compare(["here", "formula"], QUICK[:1], 40)
    assert "| here, float32 |" in text
    assert "left out" not in text
