"""The recipes of docs/torch-recipes.md: each line is run, and the table's statement about it is checked."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from puzzlelib_rmsprop.torch import RMSpropGraves  # noqa: E402
from tests.torch.theirs import Theirs, one_thread  # noqa: E402, F401 (a fixture)

TABLE = Path(__file__).parents[2] / "docs" / "torch-recipes.md"


def recipes():
    """Returns the rows of the table: case -> the old line, the new one, and whether they are equivalent."""
    _, mark, rest = TABLE.read_text(encoding="utf-8").partition("<!-- recipes -->\n")
    assert mark
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in rest.partition("\n\n")[0].split("\n")]
    assert rows[0] == ["you have", "old line", "new line", "the same?"]
    return {have: (old.strip("`"), new.strip("`"), same) for have, old, new, same in rows[2:]}


RECIPES = recipes()


def rows(pattern):
    """Parametrizes a test with the rows whose old line contains a text."""
    found = [name for name, (old, _, _) in RECIPES.items() if re.match(pattern, old)]
    assert found
    return pytest.mark.parametrize("row", found)


TORCH, TENSORFLOW, AGENTS, TIMM = r"torch\.optim", r"tf\.|optax\.", r"A2C|DQN", r"create_optimizer_v2"


def test_the_readme_has_recipes_of_the_table():
    readme = (TABLE.parents[1] / "README.md").read_text(encoding="utf-8")
    table = readme.partition("| in place of | write |\n| --- | --- |\n")[2].partition("\n\n")[0]
    lines = [line.split("`")[-2] for line in table.split("\n")]
    assert len(lines) >= 4
    for line in lines:
        assert any(line in new for _, new, _ in RECIPES.values()), line


def test_every_row_is_run():
    run = [name for name, (old, _, _) in RECIPES.items() if re.match("|".join((TORCH, TENSORFLOW, AGENTS, TIMM)), old)]
    assert run == list(RECIPES)
    assert len(run) == 10


def gradients(steps=100):
    """Returns gradients of very different sizes, and with a nonzero mean."""
    rng = np.random.default_rng(0)
    scale = np.logspace(-6, 1, 200)
    for _ in range(steps):
        yield scale * (rng.standard_normal(200) + 0.3)


def numbers_of(line):
    """Returns the arguments of a call of TensorFlow or Optax, under the names of the float64 copy."""
    found = {"momentum": 0.0, "centered": "True" in line, "lr_in_momentum": True, "start": float(line.startswith("tf."))}
    for names, key in (("learning_rate=|rmsprop\\(", "lr"), ("decay=", "alpha"), ("epsilon=|eps=", "eps")):
        found[key] = float(re.search(f"(?:{names})([-.e0-9]+)", line)[1])
    return found


@rows(TENSORFLOW)
def test_of_tensorflow_and_optax(row):
    old, new, same = RECIPES[row]
    assert same.startswith("yes")
    param = torch.zeros(200, dtype=torch.float64, requires_grad=True)
    optimizer = eval(new, {"params": [param], "RMSpropGraves": RMSpropGraves})
    theirs = Theirs([np.zeros(200)], **numbers_of(old))
    for g in gradients():
        param.grad = torch.from_numpy(g)
        optimizer.step()
        theirs.step([g])
    assert np.abs(param.detach().numpy() - theirs.params[0]).max() <= 1e-12
    assert theirs.params[0].min() < -1e-3


@rows(TORCH)
def test_of_pytorch(row):
    """Steps are 1 to sqrt(2) times as long; with the paper's epsilon from a tenth of that to (1 + 0.01) / sqrt(1 + 0.01)."""
    old, new, same = RECIPES[row]
    assert same.startswith(("no", "nearly"))
    first, second = (torch.zeros(200, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizers = [
        eval(line, {"params": [param], "torch": torch, "RMSpropGraves": RMSpropGraves})
        for line, param in ((old, first), (new, second))
    ]
    for optimizer in optimizers:  # a first step has no momentum: single steps from the same averages are compared
        optimizer.param_groups[0]["momentum"] = 0.0
    ratios = []
    for g in gradients():
        before = first.detach().clone(), second.detach().clone()
        first.grad = torch.from_numpy(g)
        second.grad = torch.from_numpy(g)
        for optimizer in optimizers:
            optimizer.step()
        ratios.append(((second - before[1]) / (first - before[0])).detach())
    ratios = torch.stack(ratios)
    # 1e-6: a parameter's update is rounded to some 1e-16 of the parameter
    least, most = (0.1 - 1e-6, 1.01 / 1.01**0.5 + 1e-6) if same.startswith("no") else (1 - 1e-6, 2**0.5 + 1e-6)
    assert ((ratios >= least) & (ratios <= most)).all()
    assert ratios.min() < least + 0.1
    assert ratios.max() > most - 0.1


def test_the_paper_has_epsilon_inside():
    """The rule of the DQN paper's code: the root of the difference of two averages plus 0.01."""
    row = next(name for name in RECIPES if "the paper's rule" in name)
    param = torch.zeros(200, dtype=torch.float64, requires_grad=True)
    optimizer = eval(RECIPES[row][1], {"params": [param], "RMSpropGraves": RMSpropGraves})
    mean = square = expected = np.zeros(200)
    for g in gradients():
        param.grad = torch.from_numpy(g)
        optimizer.step()
        mean = 0.95 * mean + 0.05 * g
        square = 0.95 * square + 0.05 * g * g
        expected = expected - 2.5e-4 * g / np.sqrt(square - mean * mean + 0.01)
    assert np.abs(param.detach().numpy() - expected).max() <= 1e-12


@rows(TIMM)
def test_of_timm(row):
    """Trains a timm net with the old line and with the new one, each with its own gradients."""
    optim = pytest.importorskip("timm.optim")
    old, new, same = RECIPES[row]
    assert same == "yes"
    torch.manual_seed(0)
    nets = [pytest.importorskip("timm").create_model("test_efficientnet", num_classes=10).double()]
    nets.append(copy.deepcopy(nets[0]))
    names = {**vars(optim), "RMSpropGraves": RMSpropGraves}
    optimizers = [eval(line, {**names, "model": net}) for line, net in zip((old, new), nets, strict=True)]
    assert [type(optimizer).__name__ for optimizer in optimizers] == ["RMSpropTF", "RMSpropGraves"]
    images, labels = torch.randn(8, 3, 64, 64, dtype=torch.float64), torch.arange(8)
    begin = [p.detach().clone() for p in nets[0].parameters()]
    for _ in range(5):
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
    pairs = list(zip(*(net.parameters() for net in nets), begin, strict=True))
    assert max((a - c).abs().max() for a, _, c in pairs) > 1e-2
    assert max((a - b).abs().max() for a, b, _ in pairs) <= 1e-9


@rows(AGENTS)
def test_of_stable_baselines(row):
    """Trains agents. If the optimizers are equivalent, the agents are equal up to float32 precision."""
    library = pytest.importorskip("stable_baselines3")
    like = pytest.importorskip("stable_baselines3.common.sb2_compat.rmsprop_tf_like").RMSpropTFLike
    old, new, same = RECIPES[row]
    names = {"A2C": library.A2C, "DQN": library.DQN, "RMSpropTFLike": like, "RMSpropGraves": RMSpropGraves}
    agents, begins = [], []
    for line in (old, new):
        more = ", learning_starts=50" if line.startswith("DQN") else ""
        # one after the other, as all agents share PyTorch's generator, which is seeded
        agent = eval(line.replace("env", f"'CartPole-v1', seed=0, device='cpu'{more}", 1), names)
        begins.append([p.detach().clone() for p in agent.policy.parameters()])
        agents.append(agent.learn(300))
    first = begins[0]
    assert all(map(torch.equal, *begins))
    assert type(agents[1].policy.optimizer) is RMSpropGraves
    after = [list(agent.policy.parameters()) for agent in agents]
    moved = max((a - b).abs().max().item() for a, b in zip(after[1], first, strict=True))
    apart = max((a - b).abs().max().item() for a, b in zip(*after, strict=True))
    assert moved > 1e-3
    assert apart <= 1e-5 if same == "yes" else apart > 1e-5
