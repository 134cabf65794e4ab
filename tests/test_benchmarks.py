"""The benchmark, for developers: it refuses what computes something else, and says of made-up figures what is so."""

import json
import shutil

import numpy as np
import pytest

from tests.conftest import ARRAYS

pytest.importorskip("benchmarks", reason="the sources are not beside the tests")
from benchmarks import __main__ as command
from benchmarks import cases, contenders, floor, fresh, plots, tables, targets, timing, worker
from benchmarks.contenders import CONTENDERS, COPY, COPY_THREADS, FOREACH, LOCAL, ONE_THREAD, OURS, Where

CPU = Where("cpu", 2)
needs_cc = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler here")

# ------------------------------------------------------------------------------------------- the check

HERE = [
    OURS,
    LOCAL,
    ONE_THREAD,
    contenders.BFLOAT16,
    contenders.MASTER,
    contenders.FUSED,
    "NumPy",
    COPY,
    COPY_THREADS,
    pytest.param(contenders.C_LOOP_NAME, marks=needs_cc),
]


@pytest.mark.parametrize("name", HERE)
def test_contenders_compute_their_formula(name):
    for dtype in CONTENDERS[name].dtypes:
        assert (
            contenders.check(name, dtype, CPU) <= contenders.TOLERANCES["float16" if name == contenders.BFLOAT16 else dtype]
        )


def planted(monkeypatch, name, **changed):
    """That contender with parts of its work replaced: part -> function(work) that gives the new one."""
    right = CONTENDERS[name]

    def make(params, grads, where):
        work = right.make(params, grads, where)
        return work._replace(**{part: change(work) for part, change in changed.items()})

    monkeypatch.setitem(CONTENDERS, name, contenders.Contender(make, right.kind, right.devices, right.dtypes))


FAULTS = {
    "does nothing": {"step": lambda work: lambda: None},
    "steps twice": {"step": lambda work: lambda: (work.step(), work.step())},
    "keeps the first gradient": {"fill": lambda work: lambda contents: None},
    "does not zero": {"zero": lambda work: lambda: None},
    "gives NaN": {"read": lambda work: lambda: [array * np.float32("nan") for array in work.read()]},
    "leaves the last element": {
        "read": lambda work: lambda: [np.append(array[:-1], np.float32(0)) for array in work.read()]
    },
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [OURS, "NumPy"])
def test_a_wrong_contender_is_refused(name, fault, monkeypatch):
    planted(monkeypatch, name, **FAULTS[fault])
    with pytest.raises(ValueError, match="does not compute its formula"):
        contenders.check(name, "float32", CPU)


@pytest.mark.parametrize("hyper", ["LEARN_RATE", "ALPHA", "MOMENTUM", "EPSILON"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_hyper_parameters_are_refused(hyper, dtype, monkeypatch):
    right = CONTENDERS[OURS]

    def make(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(contenders, hyper, 0.9 * getattr(contenders, hyper))
            return right.make(*arguments)

    monkeypatch.setitem(CONTENDERS, OURS, contenders.Contender(make, "ours", dtypes=right.dtypes))
    with pytest.raises(ValueError, match="does not compute its formula"):
        contenders.check(OURS, dtype, CPU)


def test_a_copy_that_does_not_copy_is_refused(monkeypatch):
    planted(monkeypatch, COPY, step=lambda work: lambda: None)
    with pytest.raises(ValueError, match="does not copy"):
        contenders.check(COPY, "float32", CPU)


def test_the_copy_in_threads_copies_all_of_a_large_array():
    source = [np.arange(1_000_003, dtype=np.float32)]
    work = contenders.copy_threads(source, source, Where("cpu", 3))
    work.step()
    np.testing.assert_array_equal(work.read()[0], source[0])


def test_what_is_not_in_this_version_is_left_out():
    with pytest.raises(contenders.LeftOut, match="not in this version"):
        contenders.ours(noSuchOption=True)([np.ones(3, np.float32)], [np.ones(3, np.float32)], CPU)


def test_without_a_compiler_the_c_loop_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    with pytest.raises(contenders.LeftOut, match="no C compiler"):
        contenders.c_loop([], [], CPU)


# --------------------------------------------------------------------------------------------- timing


def test_gradients_are_there_again_after_zeroing():
    grad, seen = np.ones(3), []
    work = contenders.Work(
        lambda: seen.append(grad.copy()), list, lambda contents: np.copyto(grad, contents[0]), lambda: grad.fill(0)
    )
    assert worker.on_cpu(work, [np.full(3, 7.0)], 10, 4)["seconds"] > 0
    np.testing.assert_array_equal(seen, np.full((4, 3), 7.0))


def test_a_worker_that_takes_too_long_is_ended_and_another_started():
    contender = timing.Worker("NumPy")
    contender.send("check", dtype="float32", device="cpu", threads=1)
    with pytest.raises(timing.Refused, match="more than 0 s"):
        contender.receive(0)
    assert contender.ask("check", dtype="float32", device="cpu", threads=1) < 1e-5
    with pytest.raises(timing.Refused, match="TypeError: data type"):
        contender.ask("check", dtype="float3", device="cpu", threads=1)
    contender.end()


class FakeWorker:
    """Answers at once, and keeps the orders."""

    def __init__(self, fails=None):
        self.fails, self.orders = fails, []

    def ask(self, do, **order):
        self.orders.append(do)
        if do == self.fails:
            raise timing.Refused("planted")
        return {"seconds": 1.0} if do == "time" else None


@pytest.mark.parametrize("together", [True, False])
def test_contenders_take_turns(together, monkeypatch):
    monkeypatch.setattr(timing, "fits", lambda case, device: together)
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)
    case = cases.Case("main", "three", [3], (OURS, "NumPy", COPY), rounds=2)
    workers = {OURS: FakeWorker(), "NumPy": FakeWorker(fails="time"), COPY: FakeWorker(fails="make")}
    found = timing.measure(case, workers, "cpu", 2, True, timing.Progress(6))
    assert found["seconds"] == {OURS: [1.0, 1.0]}
    assert found["left_out"] == {"NumPy": "planted", COPY: "planted"}
    case = case._replace(sizes=[1] * 101)
    found = timing.measure(
        case._replace(names=(OURS, contenders.COMPILE)),
        workers | {contenders.COMPILE: FakeWorker()},
        "cpu",
        2,
        True,
        timing.Progress(6),
    )
    assert found["left_out"] == {contenders.COMPILE: "setting it up for more than 100 variables takes minutes"}
    each = ["make", "time", "time", "drop"] if together else ["make", "time", "drop"] * 2 + ["drop"]
    assert workers[OURS].orders == each * 2


def test_cases_have_only_those_who_can_take_part():
    planned = cases.cases("cpu", cases.SUITES, False, 4, CONTENDERS)
    assert {case.suite for case in planned} == set(cases.TIMED)
    assert [case.threads for case in planned if case.suite == "threads"][:3] == [1, 2, 4]
    for case in planned:
        assert contenders.CUPY not in case.names
        assert all(case.dtype in CONTENDERS[name].dtypes for name in case.names)
        assert (COPY in case.names) <= (not case.zero)
        assert (contenders.FUSED in case.names) == (case.suite == "main" and case.zero)
    assert {len(case.sizes) for case in planned if case.suite == "count"} == {1, 10, 100, 1_000, 10_000}
    assert {sum(case.sizes) for case in planned if case.suite == "count"} == {1_000_000}
    assert max(sum(case.sizes) for case in planned if case.suite == "size") == 100_000_000


# -------------------------------------------------------------------------------------------- targets


def case(suite, sizes, seconds, dtype="float32", zero=False, threads=None, **more):
    about = cases.Case(suite, f"{len(sizes)} of {sizes[0]:,}", sizes, (), dtype, zero, threads).about()
    return about | {"device": "cpu", "seconds": {name: [s, s, s] for name, s in seconds.items()}, "left_out": {}} | more


def results(ours):
    """Figures of a run on a CPU in which the others take 10 and the copy takes as its bytes take ours."""
    large = {OURS: ours, FOREACH: 14.0, "Paddle": 10.0, COPY: ours * 8 / 36 * 2, COPY_THREADS: ours * 8 / 36}
    return [
        case("main", [50_000_000], large),
        case("main", [1_000_000], {OURS: ours, ONE_THREAD: ours, FOREACH: 10.0, contenders.C_LOOP_NAME: 10.0, "NumPy": 1.0}),
        case("main", cases.NET, {OURS: 99.0, FOREACH: 1.0}),
        case("main", cases.NET, {OURS: ours, FOREACH: 10.0}, zero=True),
        case("main", [1000] * 1000, {OURS: ours, LOCAL: ours, FOREACH: 10.0}),
        case("main", [1_000_000], {OURS: 10.0, contenders.FUSED: ours}, zero=True),
        case("dtype", [50_000_000], {OURS: 10.0, contenders.BFLOAT16: ours}),
        case("threads", [1_000_000], {OURS: 10.0}, threads=1),
        case("threads", [1_000_000], {OURS: 4.0}, threads=2),
    ]


# target -> the ratio to the others' 10 from which on it is met
LIMITS = {
    "50,000,000 elements beside the fastest peer": 1.2,
    "1,000,000 elements beside the fastest peer": 3.5,
    "6 variables": 3.0,
    "1,000 variables of 1,000, local, beside": 10.0,
    "1,000,000 elements, one thread": 1.5,
    "50,000,000 elements: bfloat16": 1.4,
    "1,000,000 elements: zeroed": 1.0,
}


@pytest.mark.parametrize("target", LIMITS)
def test_targets_on_a_cpu(target):
    def verdict(ours):
        return next(each for each in targets.targets("cpu", results(ours)) if each.target.startswith(target))

    limit = LIMITS[target]
    assert verdict(10.0 / (limit * 1.01)).met is True
    assert verdict(10.0 / (limit * 0.99)).met is False
    assert f"{limit * 2:.2f} times" in verdict(10.0 / (limit * 2)).measured


def test_the_copy_is_the_faster_one_and_bytes_are_counted():
    figures = results(1.0)
    found = {each.target: each for each in targets.targets("cpu", figures)}[
        "50,000,000 elements: share of the copy's bandwidth"
    ]
    assert (found.measured, found.met) == ("1.00 (1.8 GB/s; copy, threads: 1.8)", True)
    figures[0]["seconds"][COPY_THREADS] = [0.2] * 3
    assert targets.targets("cpu", figures)[1].met is False


def test_targets_that_were_not_measured_are_not_decided():
    for device in ("cpu", "cuda"):
        for each in targets.targets(device, []):
            assert each.met is None
            assert each.measured.startswith("not ")
    gone = results(1.0)
    gone[1]["seconds"] = {OURS: [1.0] * 3}
    gone[4]["seconds"].pop(FOREACH)
    gone[4]["left_out"][FOREACH] = "torch is not installed"
    said = [each.measured for each in targets.targets("cpu", gone)]
    assert said[2] == "no peer is here"
    assert said[4] == "PyTorch foreach: torch is not installed"


FIRST = {
    kind: [{"since_start": 3.0, "numpy_and_h5py": 0.1, "import": 0.2, "setupOn": 0.1, "first_update": update}] * 3
    for kind, update in (("cold", 2.0), ("warm", 0.4))
}
QUIET = {"updates": 10, "malloced_and_kept": 0, "resident_growth": 0, "peak_growth": 0, "traced_and_kept": 64}
MEMORY = {
    "updates": {
        "one variable of 1,000,000, global": QUIET | {"traced_in_one_update": 900},
        "1,000 variables of 1,000, local": QUIET | {"traced_in_one_update": 50_000},
    },
    "setup": {
        "variables": 10,
        "bytes_of_a_variable": 400,
        "bytes_of_all_variables": 4_000,
        "held_before": 8_000,
        "held_after": 20_010,
        "peak": 20_390,
        "arrays_of_the_state": 3,
    },
}


def test_targets_of_first_use_and_memory():
    def verdicts(first, memory):
        return {each.target.split(",")[0].split(":")[0]: each.met for each in targets.targets("cpu", [], first, memory)}

    found = {each.target: each.met for each in targets.targets("cpu", [], FIRST, MEMORY)}
    assert found["import, on top of NumPy and h5py"] is True
    assert found["first update, cold cache"] is True
    assert found["first update, warm cache"] is True
    assert found["update() after the first, one variable: no allocation"] is True
    assert found["update() after the first, 1,000 variables: no allocation"] is False
    assert verdicts(FIRST, MEMORY)["setupOn"] is True
    slow = {kind: [{**use, "import": 0.26} for use in uses] for kind, uses in FIRST.items()}
    assert verdicts(slow, MEMORY)["import"] is False
    swapped = {"cold": [{"first_update": 3.1, "import": 0.2}], "warm": [{"first_update": 0.51, "import": 0.2}]}
    assert verdicts(swapped, MEMORY)["first update"] is False
    two_copies = MEMORY | {"setup": MEMORY["setup"] | {"peak": 20_900}}
    assert verdicts(FIRST, two_copies)["setupOn"] is False
    for leak in ("malloced_and_kept", "traced_and_kept", "peak_growth"):
        figures = {"updates": {"one variable": MEMORY["updates"]["one variable of 1,000,000, global"] | {leak: 10**6}}}
        assert targets._allocates(figures, "one variable")[1] is False


def test_targets_on_a_gpu():
    size = 1 << 26
    figures = [
        case("main", [size], {OURS: 1.0, FOREACH: 3.1, COPY: 8 / 36}),
        case("main", [1000] * 1000, {OURS: 1.0, LOCAL: 1.0, FOREACH: 9.0}, host_seconds={OURS: [9e-6], LOCAL: [14e-6]}),
        case("dtype", [size], {OURS: 1.0, COPY: 4 / 30 * 0.9}, dtype="float16"),
        case("size", [1000], {OURS: 1.0, contenders.CUPY: 1.1}),
        case("size", [9000], {OURS: 1.0, contenders.CUPY: 0.9}),
    ]
    figures[1]["launches"] = {LOCAL: 1}
    memory = {"updates_on_gpu": {"global": {"device_bytes_taken": 0, "allocations": 0}}}
    found = [(each.measured, each.met) for each in targets.targets("cuda", figures, None, memory)]
    assert [met for _, met in found] == [True, True, False, True, True, False, False, None, False, True]
    assert found[8][0] == "0.90 times at 9,000"
    assert found[6][0] == "9.0 us"


# ---------------------------------------------------------------------------------- the command, and what it writes


@pytest.fixture
def run(tmp_path):
    """A file of a run with made-up figures."""
    found = {
        "about": {"cpu": "some CPU", "cores": 2, "date": "2026-01-01", "commit": "abc", "versions": {"numpy": "2"}},
        "left_out": {"Paddle": "paddle is not installed"},
        "results": [
            *results(1e-3),
            *(case("size", [n], {OURS: n * 1e-9, COPY: n * 1e-10}) for n in (1000, 10_000)),
            *(case("count", [1000 // n] * n, {OURS: 1e-4, FOREACH: 1e-4 * n}) for n in (1, 10)),
        ],
        "first": FIRST,
        "memory": MEMORY,
    }
    found["targets"] = [each._asdict() for each in targets.targets("cpu", found["results"], FIRST, MEMORY)]
    path = tmp_path / "run.json"
    path.write_text(json.dumps(found))
    return path


def test_plots_are_drawn_from_the_file(run, capsys):
    from matplotlib import image

    assert command.main(["--plot-only", str(run), "--plots", str(run.parent / "plots")]) == 0
    drawn = sorted((run.parent / "plots").iterdir())
    assert [path.name for path in drawn] == ["cpu-bandwidth.png", "cpu-main.png", "cpu-variables.png"]
    printed = capsys.readouterr().out
    for path in drawn:
        assert f"written: {path}" in printed
        pixels = image.imread(path)
        assert min(pixels.shape[:2]) > 300
        assert len(np.unique(pixels[..., 0])) > 20  # more than an empty frame
    assert set(plots.STYLES) == set(CONTENDERS)


def test_tables_have_the_figures(run):
    text = tables.report(json.loads(run.read_text()))
    assert "| puzzlelib_rmsprop, global | 1,000.0 | 1,000.0 - 1,000.0 | 1.00 | 36.0 |" in text
    assert "| PyTorch foreach | 100.0 (1.00) | 1,000.0 (10.00) |" in text
    assert "| first update | 2,000.0 (2,000.0 - 2,000.0) | 400.0 (400.0 - 400.0) |" in text
    assert "| 1,000,000 elements beside the fastest peer | >= 3.5 times | 10000.00 times (PyTorch foreach) | met |" in text
    assert "| update() after the first, 1,000 variables: no allocation | <= 4,096 bytes |" in text
    assert "**not met**" in text
    assert "left out: Paddle: paddle is not installed" in text


def test_peers_are_chosen_by_words():
    assert "TensorFlow" in command.chosen(None, "cpu")
    found = command.chosen(["torch"], "cpu")
    assert {"PyTorch loop", FOREACH, OURS, COPY} <= set(found)
    assert not {"TensorFlow", "NumPy", contenders.C_LOOP_NAME} & set(found)
    assert {CONTENDERS[name].kind for name in command.chosen([], "cuda")} == {"ours", "limit"}


@pytest.mark.parametrize("options", [["--peers", "nobody"], ["--suite", "nothing"], ["--device", "tpu"], ["--fast"]])
def test_other_options_are_refused(options):
    with pytest.raises(SystemExit) as ended:
        command.main(options)
    assert ended.value.code == 2


def test_ours_being_wrong_fails_the_run(monkeypatch, capsys):
    class Fake:
        def __init__(self, name):
            self.name = name

        def send(self, do, **order):
            pass

        def receive(self, limit):
            if self.name in ("Paddle", OURS):
                raise timing.Refused("planted", missing=self.name == "Paddle")
            return 1e-7

        def end(self):
            pass

    monkeypatch.setattr(command, "Worker", Fake)
    workers, left_out, wrong = command.checked(["Paddle", "NumPy"], "cpu", 1, ["float32", "float64"])
    assert (list(workers), left_out, wrong) == (["NumPy"], {"Paddle": "planted"}, False)
    assert command.checked([OURS], "cpu", 1, ["float32"])[2] is True
    assert "checked: NumPy, float64" in capsys.readouterr().out


def test_a_short_run(tmp_path, capsys):
    paths = tmp_path / "out" / "run.json", tmp_path / "out" / "run.md"
    options = ["--quick", "--suite", "count", "--peers", "numpy"]
    assert command.main([*options, "--json", str(paths[0]), "--markdown", str(paths[1])]) == 0
    printed = capsys.readouterr().out
    assert "checked: puzzlelib_rmsprop, local, float32" in printed
    assert paths[1].read_text() in printed
    found = json.loads(paths[0].read_text())
    assert found["about"]["versions"]["numpy"] == np.__version__
    for each in found["results"]:
        assert set(each["seconds"]) == {OURS, LOCAL, "NumPy", COPY}
        assert all(len(values) == 3 and min(values) > 0 for values in each["seconds"].values())


def test_figures_are_not_lost_where_a_process_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(fresh, "FIRST_USE", tmp_path / "there_is_no_such_script.py")
    assert command.main(["--quick", "--suite", "first", "--peers", "--json", str(tmp_path / "run.json")]) == 0
    found = json.loads((tmp_path / "run.json").read_text())
    assert "can't open file" in found["left_out"]["first"]
    assert {each["met"] for each in found["targets"]} == {None}


def test_figures_are_not_lost_where_the_run_is_ended(monkeypatch, tmp_path):
    measured = []

    def measure(case, *arguments, real=command.measure):
        if measured:
            raise KeyboardInterrupt
        measured.append(case.title)
        return real(case, *arguments)

    monkeypatch.setattr(command, "measure", measure)
    paths = ["--json", str(tmp_path / "run.json"), "--markdown", str(tmp_path / "run.md")]
    with pytest.raises(KeyboardInterrupt):
        command.main(["--quick", "--suite", "count", "--peers", *paths])
    found = json.loads((tmp_path / "run.json").read_text())
    assert [each["title"] for each in found["results"]] == measured
    assert "## count" in (tmp_path / "run.md").read_text()
    assert {each["met"] for each in found["targets"]} == {None}


def test_the_floor_of_one_thread(capsys):
    try:
        assert floor.main(["1000"]) == 0
    except contenders.LeftOut as reason:
        pytest.skip(str(reason))
    *_, row = capsys.readouterr().out.splitlines()
    size, *figures = [each.strip() for each in row.strip("|").split("|")]
    assert (size, len(figures)) == ("1,000", 5)
    assert min(map(float, figures)) > 0


def test_setting_up_is_seen():
    figures = fresh.run("-m", "benchmarks.fresh", "setup", "cpu", "quick")
    assert figures["arrays_of_the_state"] == 3
    assert figures["held_after"] >= 5 * figures["bytes_of_all_variables"]


# --------------------------------------------------------------------------------- on a GPU, or the simulator


def test_contenders_on_cuda(cuda, monkeypatch):
    assert "pycuda" in ARRAYS
    where = Where("cuda", 2)
    for name in (OURS, LOCAL, COPY):
        for dtype in ("float16", "float32"):
            assert contenders.check(name, dtype, where) <= contenders.TOLERANCES[dtype]
    planted(monkeypatch, OURS, step=lambda work: lambda: (work.step(), work.step()))
    with pytest.raises(ValueError, match="does not compute its formula"):
        contenders.check(OURS, "float32", where)


def test_launches_and_times_on_cuda(cuda):
    arrays = [np.random.default_rng(0).standard_normal(n).astype(np.float32) for n in (5, 9)]
    local = CONTENDERS[LOCAL].make(arrays, arrays, Where("cuda", 2))
    assert worker.launches(local) == 1
    assert worker.launches(CONTENDERS[COPY].make(arrays, arrays, Where("cuda", 2))) == 0
    times = worker.on_gpu(local, True, 0.001, 3)
    assert times["seconds"] > 0
    assert times["host_seconds"] > 0
