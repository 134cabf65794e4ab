"""What the benchmark says of made-up figures, and its command."""

import json

import numpy as np
import pytest

pytest.importorskip("benchmarks", reason="the sources are not beside the tests")
from benchmarks import __main__ as command
from benchmarks import cases, contenders, plots, tables, timing
from benchmarks.contenders import C_LOOP, CALL, COMPILE, CONTENDERS, COPY, DEAD, FOREACH, LOCAL, LOOK, OURS

# ---------------------------------------------------------------------------------- the command, and what it writes


def case(suite, sizes, seconds, dtype="float32", zero=False, beside=OURS, **more):
    about = cases.Case(suite, f"{len(sizes)} of {sizes[0]:,}", sizes, (), dtype, zero, beside).about()
    return about | {"device": "cpu", "seconds": {name: [s, s, s] for name, s in seconds.items()}, "left_out": {}} | more


@pytest.fixture
def run(tmp_path):
    """A file of a run with made-up figures."""
    found = {
        "about": {"cpu": "some CPU", "cores": 2, "date": "2026-01-01", "commit": "abc", "versions": {"numpy": "2"}},
        "left_out": {"Paddle": "paddle is not installed"},
        "results": [
            case(
                "main", [1_000_000], {OURS: 1e-3, FOREACH: 14e-3, C_LOOP: 2e-3, contenders.ADAM: 5e-4, COPY: 1e-3 * 8 / 72}
            ),
            case("main", cases.NET, {OURS: 1e-3, FOREACH: 1e-2}, zero=True),
            *(case("size", [n], {OURS: n * 1e-9, COPY: n * 1e-10}) for n in (1000, 10_000)),
            case("dead", [1_000_000], {OURS: 1e-3, DEAD[OURS]: 1e-3}),
            case("dtype", [50_000_000], {OURS: 1e-2, contenders.BFLOAT16: 9e-3}, left_out={FOREACH: "planted"}),
            case("call", [1], {CALL: 1e-7, OURS: 1e-6}),
            case(
                "look", [1] * 1000, {LOOK: 1e-4, contenders.FOREIGN: 1.1e-4, contenders.FOREIGN_LOCAL: 1.5e-4}, beside=LOOK
            ),
        ],
        "first": [{"setupOn": 0.1, "first update": 0.019}] * 3,
        "memory": {"global": {"held after setupOn": 4_000, "in one update": 552}},
    }
    path = tmp_path / "run.json"
    path.write_text(json.dumps(found))
    return path


def test_plots_are_drawn_from_the_file(run, capsys):
    image = pytest.importorskip("matplotlib.image")
    assert command.main(["--plot-only", str(run), "--plots", str(run.parent / "plots")]) == 0
    drawn = sorted((run.parent / "plots").iterdir())
    assert [path.name for path in drawn] == ["cpu-bandwidth.png", "cpu-dead.png", "cpu-look.png", "cpu-main.png"]
    printed = capsys.readouterr().out
    for path in drawn:
        assert f"written: {path}" in printed
        pixels = image.imread(path)
        assert min(pixels.shape[:2]) > 300
        assert len(np.unique(pixels[..., 0])) > 20  # more than an empty frame


def test_contenders_look_different_in_plots():
    assert len({plots.style(name) for name in CONTENDERS}) == len(CONTENDERS)


def test_tables_have_the_figures(run):
    text = tables.report(json.loads(run.read_text()))
    assert "| puzzlelib_rmsprop, global | 1,000.0 | 1,000.0 - 1,000.0 | 1.00 | 36.0 | 0.50 |" in text
    assert "| PyTorch foreach | 14,000.0 | 14,000.0 - 14,000.0 | 14.00 | 2.6 | 0.04 |" in text
    assert "| PyTorch foreach | 10,000.0 | 10,000.0 - 10,000.0 | 10.00 |" in text  # no GB/s with zeroing
    assert "| puzzlelib_rmsprop, local, foreign classes | 150.0 | 150.0 - 150.0 | 1.50 |" in text
    assert "| 1000 of 1 | median, us | quartiles | times the bare loop over the variables |" in text
    assert "| first update | 19.0 | 19.0 - 19.0 |" in text
    assert "| elements: GB/s | 1,000 | 10,000 |" in text
    assert "| puzzlelib_rmsprop, global | 36.0 | 36.0 |" in text
    assert "| puzzlelib_rmsprop, global | 1.00 | 10.0 |" in text
    assert "| global | 4,000 | 552 |" in text
    assert "- left out of 1 of 50,000,000: PyTorch foreach: planted" in text
    assert "left out: Paddle: paddle is not installed" in text


def test_ours_stands_beside_the_fastest_peer(run):
    text = tables.report(json.loads(run.read_text()))
    # neither another rule nor a copy is a peer
    assert "| main: 1 of 1,000,000 | 1,000.0 | PuzzleLib's C loop, one thread | 2,000.0 | 2.00 |" in text
    assert "| main: 6 of 6,400 | 1,000.0 | PyTorch foreach | 10,000.0 | 10.00 |" in text
    assert "| dead: " not in text


def test_host_times_of_a_gpu_are_in_the_table():
    figures = case("main", [1000], {OURS: 1e-6, COMPILE: 2e-6}, host_seconds={OURS: [9e-6] * 3, COMPILE: [14e-6] * 3})
    assert tables.case_table(figures)[0].endswith("| host, us: median | quartiles |")
    assert "| 9.00 | 9.00 - 9.00 |" in tables.case_table(figures)[2]


def test_peers_are_chosen_by_words():
    assert "TensorFlow" in command.chosen(None, "cpu")
    found = command.chosen(["torch"], "cpu")
    assert {COMPILE, FOREACH, OURS, COPY} <= set(found)
    assert not {"TensorFlow", C_LOOP} & set(found)
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
    workers, left_out, wrong = command.checked(["Paddle", C_LOOP], "cpu", 1, ["float32", "float64"])
    assert (list(workers), left_out, wrong) == ([C_LOOP], {"Paddle": "planted"}, False)
    assert command.checked([OURS], "cpu", 1, ["float32"])[2] is True
    assert f"checked: {C_LOOP}, float32" in capsys.readouterr().out


def test_a_short_run(tmp_path, capsys):
    paths = tmp_path / "out" / "run.json", tmp_path / "out" / "run.md"
    options = ["--quick", "--suite", "look", "main", "--peers"]
    assert command.main([*options, "--json", str(paths[0]), "--markdown", str(paths[1])]) == 0
    printed = capsys.readouterr().out
    assert "checked: puzzlelib_rmsprop, local, float32" in printed
    assert paths[1].read_text() in printed
    found = json.loads(paths[0].read_text())
    assert found["about"]["versions"]["numpy"] == np.__version__
    timed = [set(each["seconds"]) for each in found["results"]]
    assert {contenders.FOREIGN, contenders.FOREIGN_LOCAL, LOOK} in timed
    assert {OURS, LOCAL, contenders.FOREIGN, contenders.FOREIGN_LOCAL, COPY} in timed
    for each in found["results"]:
        assert all(len(values) == 3 and min(values) > 0 for values in each["seconds"].values())


def test_figures_are_not_lost_where_a_process_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "fresh", lambda what, *arguments: timing.fresh("no such thing", *arguments))
    assert command.main(["--quick", "--suite", "first", "--peers", "--json", str(tmp_path / "run.json")]) == 0
    found = json.loads((tmp_path / "run.json").read_text())
    assert "KeyError: 'no such thing'" in found["left_out"]["first use and memory"]


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
        command.main(["--quick", "--suite", "look", "--peers", *paths])
    found = json.loads((tmp_path / "run.json").read_text())
    assert [each["title"] for each in found["results"]] == measured
    assert "## look" in (tmp_path / "run.md").read_text()


def test_setting_up_is_seen():
    for figures in timing.fresh("memory", "cpu", True).values():
        assert figures["held after setupOn"] >= 2.5 * figures["params and grads"]  # and three arrays of state


def test_first_use_is_seen():
    figures = timing.fresh("first", "cpu", True)
    assert list(figures)[-2:] == ["setupOn", "first update"]
    assert min(figures.values()) > 0
