"""The plot of rounding errors: it runs, and this library is as near to its formula as docs/error-bounds.md says."""

import math

import pytest

pytest.importorskip("benchmarks", reason="the sources are not beside the tests")
from benchmarks import error_plot
from tests.stress.numerics_rule import of_the_movement

PROMISED = 1e-4


def column(printed, number):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")][2:]
    return {float(row[0]): math.inf if row[number] == "not finite" else float(row[number]) for row in rows}


def test_ours_is_as_near_as_promised_and_the_difference_is_not(tmp_path, capsys):
    image = pytest.importorskip("matplotlib.image")
    path = tmp_path / "numerics.png"
    assert error_plot.main(["--quick", "--peers", "here", "formula", "--out", str(path)]) == 0
    printed = capsys.readouterr().out
    ours, formula = column(printed, 1), column(printed, 2)
    assert list(ours) == list(error_plot.QUICK) == list(formula)
    assert max(ours) == 58
    assert all(error <= PROMISED for error in ours.values())
    assert all(error > PROMISED for level, error in formula.items() if level >= 1)
    assert formula[58] == math.inf
    assert path.stat().st_size < 150_000
    assert min(image.imread(path).shape[:2]) > 800


def test_the_rule_promises_that_for_every_gradient_of_the_plot():
    for level in (*error_plot.LEVELS, *error_plot.QUICK):
        assert of_the_movement(level, level * error_plot.NOISE, error_plot.STEPS, 0.95) <= PROMISED


def test_it_is_the_relative_error_of_the_movement(monkeypatch):
    # a peer that moves by twice as much, and one that is lost at one of its parameters
    ours = error_plot.peers.PEERS["here"]

    class Twice(ours):
        def read(self):
            return 2 * super().read()

    class Lost(ours):
        def read(self):
            found = super().read()
            found[0, 0] = math.nan
            return found

    class Once(ours):
        def read(self):
            found = super().read()
            found[0, 1] *= 3
            return found

    for name, fault in (("twice", Twice), ("lost", Lost), ("once", Once)):
        monkeypatch.setitem(error_plot.peers.PEERS, name, fault)
    assert error_plot.errors("twice", [1.0, 10.0], 1e-4, 5) == pytest.approx([1, 1], abs=1e-5)
    assert error_plot.errors("once", [1.0, 10.0], 1e-4, 5) == pytest.approx([2, 0], abs=1e-4)
    lost = error_plot.errors("lost", [1.0, 10.0], 1e-4, 5)
    assert lost[0] == math.inf
    assert lost[1] < PROMISED


def test_what_is_not_installed_is_left_out(monkeypatch, capsys):
    def measure(name, *arguments, real=error_plot.measure):
        if name == "Optax":
            raise ImportError("planted")
        return real(name, *arguments)

    monkeypatch.setattr(error_plot, "measure", measure)
    assert error_plot.main(["--quick", "--steps", "2", "--peers", "Optax", "here"]) == 0
    printed = capsys.readouterr().out
    assert "left out: Optax: planted" in printed
    assert len(column(printed, 1)) == len(error_plot.QUICK)


def test_an_unknown_peer_is_refused():
    with pytest.raises(SystemExit) as ended:
        error_plot.main(["--peers", "nobody"])
    assert ended.value.code == 2


def test_peers_have_a_style():
    assert set(error_plot.STYLES) == set(error_plot.peers.PEERS)
