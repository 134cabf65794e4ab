"""What the benchmark says of made-up figures, and its command."""

import json

import numpy as np
import pytest

pytest.importorskip("benchmarks", reason="the sources are not beside the tests")
from benchmarks import __main__ as command
from benchmarks import cases, contenders, fresh, plots, tables, targets, threads, timing, worker
from benchmarks.contenders import (
    C_LOOP,
    CALL,
    COMPILE,
    CONTENDERS,
    COPY,
    COPY_THREADS,
    DEAD,
    FOREACH,
    LOCAL,
    ONE_THREAD,
    OURS,
)

# -------------------------------------------------------------------------------------------- targets


def case(suite, sizes, seconds, dtype="float32", zero=False, threads=None, **more):
    about = cases.Case(suite, f"{len(sizes)} of {sizes[0]:,}", sizes, (), dtype, zero, threads).about()
    return about | {"device": "cpu", "seconds": {name: [s, s, s] for name, s in seconds.items()}, "left_out": {}} | more


def results(mine):
    """Figures of a run on a CPU in which the others take 10 and the copy takes as its bytes take ours."""
    large = {OURS: mine, FOREACH: 14.0, "Paddle": 10.0, COPY: mine * 8 / 36 * 2, COPY_THREADS: mine * 8 / 36}
    modes = (LOCAL, contenders.FOREIGN, contenders.FOREIGN_LOCAL)
    return [
        case("main", [50_000_000], large | dict.fromkeys(contenders.BARS, 10.0)),
        case("main", [1_000_000], {OURS: mine, ONE_THREAD: mine, FOREACH: 10.0, C_LOOP: 10.0, "NumPy": 1.0}),
        case("main", cases.NET, {OURS: mine * 1e-6, FOREACH: 1.0, CALL: 5e-6} | dict.fromkeys(modes, mine * 1e-6)),
        case("main", cases.NET, {OURS: mine, FOREACH: 10.0}, zero=True),
        case("main", [1000] * 1000, {OURS: mine, LOCAL: mine, FOREACH: 10.0}),
        case("main", [1_000_000], {OURS: 10.0, contenders.FUSED: mine}, zero=True),
        case("dtype", [50_000_000], {OURS: 10.0, contenders.BFLOAT16: mine}),
        case("dead", [1_000_000], {OURS: 10.0, DEAD[OURS]: mine}),
        case("dead", worker.mlp_sizes(), {OURS: 10.0, DEAD[OURS]: mine}),
        case("call", [1], {CALL: mine * 1e-6, OURS: 1.0}),
        case("threads", [1_000_000], {OURS: 10.0}, threads=1),
        case("threads", [1_000_000], {OURS: 4.0}, threads=2),
        *(case("size", [n], {OURS: mine, COMPILE: 10.0 + n % 7, C_LOOP: 16.0 - n % 7}) for n in cases.SIZES),
    ]


# target -> the figure of ours up to which it is met
LIMITS = {
    "50,000,000 elements: bfloat16": 10 / 1.4,
    "6 variables, zeroGradParams()": 10 / 3.0,
    "1,000 variables of 1,000, local, beside": 10 / 10.0,
    "1,000,000 elements: zeroed": 10 / 1.0,
    "1,000,000 elements, all dead": 12.0,
    "an MLP 64-512-512-10, 8%": 12.0,
    "the call into the library": 0.5,
    **{
        f"update() of 6 variables, besides the library's call: {mode}": 11.0
        for mode in ("global", "local", "global, foreign")
    },
    **{f"{n:,} elements: the faster of": min(10 + n % 7, 16 - n % 7) / 0.9 for n in cases.SIZES},
}


@pytest.mark.parametrize("target", LIMITS)
def test_targets_on_a_cpu(target):
    def verdict(mine):
        return next(each for each in targets.targets("cpu", results(mine)) if each.target.startswith(target)).met

    assert verdict(LIMITS[target] * 0.99) is True
    assert verdict(LIMITS[target] * 1.01) is False


def test_figures_of_targets_are_said():
    found = {each.target: (each.measured, each.met) for each in targets.targets("cpu", results(5.0))}
    assert found["50,000,000 elements: bfloat16 state beside float32 state"] == ("2.00 times", True)
    # 1,000,000 % 7 is 1
    beside = found["1,000,000 elements: the faster of PyTorch compile and the C loop, times ours"]
    assert beside == ("2.20 times (PyTorch compile)", True)
    assert found["the call into the library, one element"] == ("5.00 us", False)
    assert found["50,000,000 elements: GB/s beside PyTorch's fused optimizers"][1] is None


def test_the_copy_is_the_faster_one_and_bytes_are_counted():
    figures = results(1.0)
    found = {each.target: each for each in targets.targets("cpu", figures)}[
        "50,000,000 elements: share of the copy's bandwidth"
    ]
    assert (found.measured, found.met) == ("1.00 (1.8 GB/s; copy, threads: 1.8)", True)
    figures[0]["seconds"][COPY_THREADS] = [0.2] * 3
    found = {each.target: each for each in targets.targets("cpu", figures)}
    assert found["50,000,000 elements: share of the copy's bandwidth"].met is False


def test_targets_that_were_not_measured_are_not_decided():
    for device in ("cpu", "cuda"):
        for each in targets.targets(device, []):
            assert each.met is None
            assert each.measured.startswith("not ")
    gone = results(1.0)
    gone[3]["seconds"] = {OURS: [1.0] * 3}
    gone[4]["seconds"].pop(FOREACH)
    gone[4]["left_out"][FOREACH] = "torch is not installed"
    gone[-1]["seconds"].pop(C_LOOP)
    said = {each.target.split(":")[0]: each.measured for each in targets.targets("cpu", gone)}
    assert said["6 variables, zeroGradParams() + update(), beside the fastest peer"] == "no peer is here"
    assert said["1,000 variables of 1,000, local, beside PyTorch's foreach"] == "PyTorch foreach: torch is not installed"
    unmet = next(each for each in targets.targets("cpu", gone) if each.target.startswith("50,000,000 elements: the faster"))
    assert (unmet.measured, unmet.met) == (f"{C_LOOP}: not timed in this run", None)


FIRST = [{"since_start": 3.0, "numpy_and_h5py": 0.1, "import": 0.2, "setupOn": 0.1, "first_update": 0.019}] * 3
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
    assert found["first update after import"] is True
    assert found["update() after the first, one variable: no allocation"] is True
    assert found["update() after the first, 1,000 variables: no allocation"] is False
    assert verdicts(FIRST, MEMORY)["setupOn"] is True
    assert verdicts([{**use, "import": 0.26} for use in FIRST], MEMORY)["import"] is False
    assert verdicts([{**use, "first_update": 0.021} for use in FIRST], MEMORY)["first update after import"] is False
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
            *(each for each in results(1e-3) if each["suite"] != "size"),
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
    image = pytest.importorskip("matplotlib.image")
    assert command.main(["--plot-only", str(run), "--plots", str(run.parent / "plots")]) == 0
    drawn = sorted((run.parent / "plots").iterdir())
    assert [path.name for path in drawn] == ["cpu-bandwidth.png", "cpu-dead.png", "cpu-main.png", "cpu-variables.png"]
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
    assert "| first update | 19.0 | 19.0 - 19.0 |" in text
    assert "| 1,000 variables of 1,000, local, beside PyTorch's foreach | >= 10 times | 10000.00 times | met |" in text
    assert "| elements in one variable: GB/s | bytes an element | 1,000 | 10,000 |" in text
    assert "| puzzlelib_rmsprop, global | 36 | 36.0 | 36.0 |" in text
    assert "| update() after the first, 1,000 variables: no allocation | <= 4,096 bytes |" in text
    assert "**not met**" in text
    assert "left out: Paddle: paddle is not installed" in text


def test_peers_are_chosen_by_words():
    assert "TensorFlow" in command.chosen(None, "cpu")
    found = command.chosen(["torch"], "cpu")
    assert {"PyTorch loop", FOREACH, OURS, COPY} <= set(found)
    assert not {"TensorFlow", "NumPy", C_LOOP} & set(found)
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
        assert set(each["seconds"]) == {OURS, LOCAL, contenders.FOREIGN, contenders.FOREIGN_LOCAL, "NumPy", COPY}
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


def test_a_training_with_one_thread_and_two(capsys):
    assert threads.main(["--quick"]) == 0
    *_, row = capsys.readouterr().out.splitlines()
    size, name, *figures = [each.strip() for each in row.strip("|").split("|")]
    assert abs(int(size.replace(",", "")) - threads.SIZES[0]) < 0.01 * threads.SIZES[0]
    assert name in threads.NETS
    assert len(figures) == 7
    whole, update, rest = figures[0:2], figures[3:5], figures[5:7]
    for each in zip(whole, update, rest, strict=True):
        numbers = [float(number.replace(",", "")) for number in each]
        assert min(numbers) > 0
        assert numbers[0] > numbers[1]


def test_setting_up_is_seen():
    figures = fresh.run("-m", "benchmarks.fresh", "setup", "cpu", "quick")
    assert figures["arrays_of_the_state"] == 3
    assert figures["held_after"] >= 5 * figures["bytes_of_all_variables"]
