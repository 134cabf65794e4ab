"""The quick version of the grid in numerics.py, and proof that its check fails on a faulty kernel."""

import numpy as np
import pytest

from puzzlelib_rmsprop import Config, RMSPropGraves, Variable, gpuarray
from tests.reference import Reference, coefficients
from tests.standins import Net
from tests.stress import numerics
from tests.stress.numerics import BUFFERS, ROWS, Row, run
from tests.stress.numerics_grid import CONFIGS, LEARN_RATE, QUICK, gradients


@pytest.mark.parametrize("row", ROWS)
def test_within_the_bound(row, backend):
    on_cpu = Config.backend is Config.Backend.cpu
    result = run(ROWS[row], QUICK, 400 if on_cpu else 40, every=1 if on_cpu else 10)
    assert result.failures() == []
    for name in BUFFERS:
        # float16 may leave its range if a step is longer than the exact one; the other dtypes may not
        if ROWS[row].param != "float16":
            assert not result.infinite[name].any()
            assert not result.out[name].any()
        # the bound is meaningful: most errors are within two orders of magnitude of it
        assert np.median(result.ratio[name][~result.out[name]]) > 0.01


def test_bfloat16_state_stays_finite(backend):
    # with stochastic rounding a bound on each error says little, but nothing may leave the range if float64 does not
    on_cpu = Config.backend is Config.Backend.cpu
    row = Row("float32", state="bfloat16", keywords={"stateDtype": "bfloat16"})
    result = run(row, QUICK, 400 if on_cpu else 40, every=1 if on_cpu else 10)
    for name in BUFFERS:
        assert not result.infinite[name].any(), name


@pytest.mark.parametrize("level", [1.003, 1e4 / 3])
def test_bfloat16_state_is_right_in_the_mean(level, backend):
    # docs/error-derivation.md: the error of every element is bounded, and the mean error goes to zero with their number
    rng = np.random.default_rng(5)
    optimizer = RMSPropGraves(alpha=0.95, stateDtype="bfloat16", seed=1)
    var = Variable(gpuarray.to_gpu(np.ones(4096, np.float32)))
    optimizer.setupOn(Net(W=var))
    exact, followed = Reference(np.zeros(4096)), np.zeros(4096)
    largest, largest_variance = np.zeros(4096), np.zeros(4096)
    stored = dict.fromkeys(("mg", "variance"), np.zeros(4096))
    for _ in range(200 if Config.backend is Config.Backend.cpu else 80):
        grad = (level * (1 + 1e-3 * rng.standard_normal(4096))).astype(np.float32)
        var.grad.set(grad)
        optimizer.update()
        exact.step(grad)
        # the variance of the gradients about the stored mg, which uses other random numbers than the variance
        followed = 0.95 * followed + 0.95 * 0.05 * (grad - stored["mg"]) ** 2
        stored = {name: _host(optimizer.states["W"][name]).astype(np.float64) for name in stored}
        largest = np.maximum(largest, np.abs(exact.mg))
        largest_variance = np.maximum(np.maximum(largest_variance, followed), stored["variance"])
    for error, most in (
        (stored["mg"] - exact.mg, largest),
        (stored["variance"] - followed, largest_variance),
    ):
        assert (np.abs(error) < 8 * 2.0**-7 * most / np.sqrt(1 - 0.95**2)).all()
        assert error.std() > 0
        assert abs(error.mean()) < 6 * error.std() / np.sqrt(error.size)
    # on average it is too large by alpha times the variance of mg, and never too small
    excess = stored["variance"] - exact.variance
    unsure = 6 * excess.std() / np.sqrt(excess.size)
    assert -unsure < excess.mean() < 0.95 * 2.0**-16 * np.mean(largest**2) / (1 - 0.95**2) + unsure


def _host(array):
    return array if isinstance(array, np.ndarray) else array.get()


class Written:
    """The rule in NumPy and float32, with a fault."""

    def __init__(self, fault):
        self.fault = fault

    def __call__(self, row, configs, params):
        self.alpha, self.momRate, self.epsilon = (column[:, None].astype(np.float32) for column in configs.T)
        self.param = np.array(params)
        self.mg, self.ms, self.variance, self.delta = (np.zeros_like(self.param) for _ in range(4))
        return self

    def step(self, g):
        fault, lr = self.fault, np.float32(LEARN_RATE)
        alpha, beta, gain = coefficients(self.alpha, np.float32)
        if fault == "beta of another alpha":
            beta = beta * np.float32(1 + 1e-6)
        if fault == "gain of another alpha":
            gain = gain * np.float32(1 + 1e-5)
        if fault == "gain without alpha":
            gain = beta
        with np.errstate(all="ignore"):
            d = g - self.mg
            self.mg = alpha * self.mg + beta * g
            if fault == "mg to 20 bits":
                self.mg = (self.mg.view(np.uint32) & np.uint32(0xFFFFFFF0)).view(np.float32)
            if fault == "d after mg's update":
                d = g - self.mg
            if fault == "d of a sum":
                d = g + self.mg
            before, self.variance = self.variance, alpha * self.variance + gain * d * d
            if fault == "difference form":
                self.ms = alpha * self.ms + beta * g * g
                self.variance = np.maximum(self.ms - self.mg * self.mg, np.float32(0))
            if fault == "variance in float16":
                self.variance = self.variance.astype(np.float16).astype(np.float32)
            root = np.sqrt(self.variance + self.epsilon)
            if fault == "epsilon beside the root":
                root = np.sqrt(self.variance) + np.sqrt(self.epsilon)
            if fault == "the variance before the step":
                root = np.sqrt(before + self.epsilon)
            momentum = self.delta if fault == "momentum without its rate" else self.momRate * self.delta
            self.delta = momentum + lr * (d if fault == "d in place of g" else g) / root
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
        ("difference form", "variance"),
        ("variance in float16", "variance"),
        ("d after mg's update", "variance"),
        ("d of a sum", "variance"),
        ("gain without alpha", "variance"),
        ("gain of another alpha", "variance"),
        ("mg to 20 bits", "mg"),
        ("beta of another alpha", "mg"),
        ("epsilon beside the root", "delta"),
        ("the variance before the step", "delta"),
        ("d in place of g", "delta"),
        ("momentum without its rate", "delta"),
        ("momentum twice", "param"),
        ("param in float16", "param"),
    ],
)
def test_faults_break_the_bound(fault, buffer):
    failures = run(Row("float32"), QUICK, 100, Written(fault)).failures()
    assert any(failure.startswith(f"{buffer}, ") for failure in failures)


def test_a_nan_is_above_every_bound():
    bound = numerics.Bound(ROWS["float32"], Reference(np.zeros(1)), LEARN_RATE, 0.95, 0.9, 1e-4)
    bound.step(np.ones(1))
    assert np.isinf(bound.ratio("param", np.array([np.nan], np.float32)))


def test_the_grid_has_what_it_says():
    assert len(CONFIGS) == 5 * 3 * 4
    made = gradients(300, np.float32)
    assert np.isfinite(made).all()
    assert 0 < np.abs(made[made != 0]).min() < np.finfo(np.float32).tiny
    assert np.abs(made).max() == np.float32(1e18)


def test_the_table_goes_into_a_page(tmp_path):
    text = numerics.summary({label: run(row, QUICK[:1], 3) for label, row in ROWS.items()})
    assert all(text.count(f"| {label} |") == 2 for label in ROWS)  # what was counted, and the bounds
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- grid -->\nold\n<!-- end -->\nafter\n")
    numerics.put_into(str(page), "grid", text)
    assert page.read_text() == f"before\n<!-- grid -->\n{text}\n<!-- end -->\nafter\n"


def test_the_peers_table():
    from tests.stress import peers

    text = peers.compare(["here", "formula"], QUICK[:1], 40)
    assert "| this library | float32 |" in text
    assert f"PuzzleLib's formula in NumPy {np.__version__}." in text
    assert "left out" not in text


def test_a_peer_that_is_wrong_is_counted():
    from tests.stress import peers

    start = np.zeros((1, 4), np.float32)
    outcome = peers.Outcome(start, outside=False)
    outcome.follow(1, 2, np.array([[1, 1.02, np.nan, np.inf]], np.float32), np.ones((1, 4)))
    outcome.follow(2, 2, np.array([[2, 2.04, 2, 2]], np.float32), np.full((1, 4), 2.0))
    assert outcome.lost.tolist() == [[0, 0, 1, 1]]
    assert outcome.wrong.tolist() == [[False, True, False, False]]
