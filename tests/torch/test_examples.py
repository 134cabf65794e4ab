"""The PyTorch examples run: short trainings, each in its own process and folder."""

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tools.running import assert_narrow

torch = pytest.importorskip("torch")

EXAMPLES = Path(__file__).parents[2] / "examples"
# one thread each, as tests run in parallel
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(tmp_path, script, *options, code=0, before=""):
    """Runs some code, then a script as with ``python script options``."""
    path = str(EXAMPLES / script)
    text = f"{before}\nimport runpy, sys; sys.argv[0] = {path!r}; runpy.run_path({path!r}, run_name='__main__')"
    command = [sys.executable, "-c", text, *map(str, options)] if before else [sys.executable, path, *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == code, done.stdout + done.stderr
    assert_narrow(done.stdout)
    assert not done.stdout or done.stdout.startswith(("Training a ", "usage: "))
    return done


def assert_png(path):
    png = path.read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) > 10_000


def last_number(done, pattern):
    found = re.fullmatch(pattern, done.stdout.splitlines()[-1])
    assert found, done.stdout
    return float(found[1])


# ------------------------------------------------------------------------------------------------- digits


def test_digits_with_the_defaults(tmp_path):
    done = run(tmp_path, "torch_digits.py", "--plot", "curves.png")
    assert last_number(done, r"test accuracy: (0\.\d{4})") >= 0.97
    assert done.stdout.splitlines()[-2] == "plot: curves.png"
    assert_png(tmp_path / "curves.png")
    assert os.listdir(tmp_path) == ["curves.png"]


def test_digits_are_those_of_the_other_example():
    """The same split of the data, and the same layer sizes."""
    ours, other = (runpy.run_path(str(EXAMPLES / name)) for name in ("torch_digits.py", "train_digits.py"))
    digits = other["load"](3)
    for (images, labels), expected in zip(ours["load"](3), (digits.test, digits.validation, digits.train), strict=True):
        assert np.array_equal(images.numpy(), expected[0])
        assert np.array_equal(labels.numpy(), expected[1])
        assert images.dtype == torch.float32
    calls = [node for node in ast.walk(ast.parse((EXAMPLES / "torch_digits.py").read_text())) if isinstance(node, ast.Call)]
    layers = [[arg.value for arg in call.args] for call in calls if getattr(call.func, "attr", "") == "Linear"]
    assert [layers[0][0], *(size for _, size in layers)] == list(other["LAYERS"])


def test_digits_depend_on_the_seed_alone(tmp_path):
    first, again, other = (run(tmp_path, "torch_digits.py", "--epochs", 2, "--seed", seed).stdout for seed in (1, 1, 2))
    assert first == again != other


# ---------------------------------------------------------------------------------------------------- DQN

RETURN = r"mean return in the last quarter: (\d+\.\d)"


@pytest.mark.parametrize("optimizer", ["graves", "rmsprop", "adam"])
def test_dqn(optimizer, tmp_path):
    """Long enough to be better than random actions, which keep the pole up for some 22 steps."""
    done = run(tmp_path, "torch_dqn.py", "--optimizer", optimizer, "--steps", 6000, "--plot", "curve.png")
    assert last_number(done, RETURN) > 35
    assert_png(tmp_path / "curve.png")
    assert os.listdir(tmp_path) == ["curve.png"]


def test_dqn_compares(tmp_path):
    done = run(tmp_path, "torch_dqn.py", "--compare", "--seeds", 2, "--steps", 1500, "--plot", "curves.png")
    rows = done.stdout.splitlines()[-3:]
    assert [row.split()[0] for row in rows] == ["RMSpropGraves", "torch.optim.RMSprop", "torch.optim.Adam"]
    for row in rows:
        found = re.search(r"(\d+\.\d) \+- +(\d+\.\d)   each: (\d+) (\d+)$", row)
        mean, error, first, second = map(float, found.groups())
        # two seeds: the mean, and half of the difference
        assert abs(mean - (first + second) / 2) <= 1.1
        assert abs(error - abs(first - second) / 2) <= 1.1
    assert_png(tmp_path / "curves.png")
    assert "plot: curves.png\n" in done.stdout


def test_the_tables_of_dqn_are_narrow(tmp_path, capsys, monkeypatch):
    module = runpy.run_path(str(EXAMPLES / "torch_dqn.py"))
    runs = {name: [[(4, 500.0)]] * 12 for name in module["OPTIMIZERS"]}
    module["table"](runs, 4)
    table = capsys.readouterr().out
    assert_narrow(table)
    assert table.count("500.0 +-  0.0") == 3
    assert table.count(" 500") == 3 * 13
    order = []

    def all_of(jobs, settings):
        order.extend(jobs)
        # returns that name the optimizer and the learning rate
        return [[(4, 100 * list(module["OPTIMIZERS"]).index(name) + 1e4 * lr + seed - 102)] for name, lr, seed in jobs]

    monkeypatch.setitem(module["grid"].__globals__, "all_of", all_of)
    module["grid"](module["Settings"](steps=4))
    lines = capsys.readouterr().out.splitlines()
    assert_narrow("\n".join(lines))
    assert len(order) == 3 * 5 * 5
    assert lines.pop(0).startswith("Training a DQN on CartPole 75 times, ")
    assert lines[0].split() == ["lr", "RMSpropGraves", "torch.optim.RMSprop", "torch.optim.Adam"]
    for line, lr in zip(lines[1:], module["GRID"], strict=True):
        means = [f"{100 * number + 1e4 * lr:.1f}" for number in range(3)]
        assert line.split() == [f"{lr:g}", *(word for mean in means for word in (mean, "+-", "0.7"))]


def test_dqn_with_gymnasium(tmp_path):
    pytest.importorskip("gymnasium")
    done = run(tmp_path, "torch_dqn.py", "--gymnasium", "--steps", 1500)
    assert last_number(done, RETURN) > 5


def test_the_cart_and_the_pole_are_those_of_gymnasium():
    library = pytest.importorskip("gymnasium")
    theirs, ours = library.make("CartPole-v1"), runpy.run_path(str(EXAMPLES / "torch_dqn.py"))["CartPole"]()
    rng = np.random.default_rng(0)
    lengths = []
    for episode in range(40):
        theirs.reset(seed=episode)
        ours.reset(seed=episode)
        ours.state = [float(value) for value in theirs.unwrapped.state]
        over = False
        while not over:
            # every fourth episode keeps the pole up for a while
            sign = ours.state[2] + 0.5 * ours.state[3] > 0
            action = int(sign if episode % 4 == 0 else rng.integers(2))
            expected, found = theirs.step(action), ours.step(action)
            # each step starts from the same numbers, as the pole is unstable and differences grow
            assert np.allclose(found[0], expected[0], rtol=1e-5, atol=1e-6)
            assert found[1:4] == expected[1:4]
            ours.state = [float(value) for value in theirs.unwrapped.state]
            over = found[2] or found[3]
        lengths.append(ours.steps)
    assert max(lengths) == 500 or max(lengths) > 100
    assert min(lengths) < 20


# ------------------------------------------------------------------------------------------ characters

BITS = r"test loss: (\d\.\d{4}) bits per character"


@pytest.mark.parametrize("state", [[], ["--state-dtype", "bfloat16"], ["--state-dtype", "int8"]])
def test_characters(state, tmp_path):
    """Long enough to be better than the frequencies of characters, which give 4.5 bits for this text."""
    done = run(tmp_path, "torch_characters.py", "--steps", 60, *state)
    assert last_number(done, BITS) < 4.3


def test_characters_see_what_came_before_alone():
    module = runpy.run_path(str(EXAMPLES / "torch_characters.py"))
    net = module["Guesser"](9)
    texts = torch.randint(9, (2, module["LENGTH"]), generator=torch.Generator().manual_seed(0))
    changed = texts.clone()
    changed[:, 40] = (changed[:, 40] + 1) % 9
    same = (net(texts) == net(changed)).all(-1).all(0)
    assert same[:40].all()
    assert not same[40:].any()


# ------------------------------------------------------------------------------------------- all of them

SCRIPTS = ["torch_digits.py", "torch_dqn.py", "torch_characters.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, tmp_path):
    done = run(tmp_path, script, "--help")
    options = ["--seed", "--state-dtype"] + ["--plot"] * (script != "torch_characters.py")
    for option in options:
        assert option in done.stdout


@pytest.mark.parametrize("state", ["bfloat16", "int8"])
@pytest.mark.parametrize(
    ("script", "options"), [("torch_digits.py", ["--epochs", 1]), ("torch_dqn.py", ["--steps", 2000, "--eps", 1e-8])]
)
def test_another_state_gives_another_training(script, options, state, tmp_path):
    """The option is passed to the optimizer."""
    plain, other = (run(tmp_path, script, *options, *chosen).stdout for chosen in ([], ["--state-dtype", state]))
    lines = [[line for line in each.splitlines() if not line.endswith(" s")] for each in (plain, other)]
    assert lines[0] != lines[1]


def test_accuracy_of_an_example(tmp_path):
    """The table of benchmarks/accuracy.py contains the example's results."""
    command = [sys.executable, "-m", "benchmarks.accuracy", "torch-digits", "--seeds", "2", "--states", "float32", "int8"]
    done = subprocess.run(
        [*command, "--epochs", "1"], capture_output=True, text=True, timeout=300, cwd=EXAMPLES.parent, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| \d \| (0\.\d{4}) \| (0\.\d{4}) \|$", done.stdout, re.MULTILINE)
    (a, b), (c, d) = (map(float, row) for row in rows)
    printed = run(tmp_path, "torch_digits.py", "--epochs", 1, "--seed", 1, "--state-dtype", "int8")
    assert d == last_number(printed, r"test accuracy: (0\.\d{4})")
    means = f"| mean | {(a + c) / 2:.4f} ± {abs(a - c) / 2:.4f} | {(b + d) / 2:.4f} ± {abs(b - d) / 2:.4f} |"
    difference = f"int8 less float32: {(b + d - a - c) / 2:+.4f} ± {abs(b - a - d + c) / 2:.4f}"
    # a tie in the last digit may round either way
    for line in (means, difference):
        words = next(each for each in done.stdout.splitlines() if each.split()[:2] == line.split()[:2]).split()
        for found, expected in zip(words, line.split(), strict=True):
            same = found == expected or abs(float(found) - float(expected)) < 1.5e-4
            assert same, (found, expected)


@pytest.mark.parametrize(
    ("script", "absent", "options", "message"),
    [
        *(
            (script, "torch", [], r"torch is missing; this example needs: pip install 'torch>=2\.6'.*\n")
            for script in SCRIPTS
        ),
        *(
            (
                script,
                "matplotlib",
                ["--plot", "x.png"],
                r"matplotlib is missing, which --plot needs: pip install matplotlib\n",
            )
            for script in SCRIPTS[:2]
        ),
    ],
)
def test_what_is_missing_is_named_at_once(script, absent, options, message, tmp_path):
    before = f"import sys; sys.modules[{absent!r}] = None"
    done = run(tmp_path, script, *options, code=1, before=before)
    assert re.fullmatch(message, done.stderr)
    assert not done.stdout


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("torch_characters.py", ["--steps", "0"], "must be at least 1, not 0"),
        (
            "torch_dqn.py",
            ["--optimizer", "adam", "--state-dtype", "int8"],
            "are for RMSpropGraves, not adam",
        ),
        *((script, ["--state-dtype", "float16"], "choose from") for script in SCRIPTS),
        ("torch_digits.py", ["--epochs", "0"], "must be at least 1, not 0"),
        ("torch_digits.py", ["--plot", "absent/x.png"], "there is no folder absent"),
        ("torch_dqn.py", ["--plot", "absent/x.png"], "there is no folder absent"),
        ("torch_dqn.py", ["--eps", "0"], "must be above 0, not 0.0"),
        ("torch_dqn.py", ["--steps", "0"], "must be at least 1, not 0"),
        ("torch_dqn.py", ["--optimizer", "sgd"], "choose from"),
        ("torch_dqn.py", ["--optimizer", "adam", "--compare"], "not allowed with"),
        ("torch_dqn.py", ["--compare", "--lr", "0.1"], "--lr is for a single run"),
    ],
)
def test_bad_options(script, options, message, tmp_path):
    done = run(tmp_path, script, *options, code=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
