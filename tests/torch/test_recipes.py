"""The recipes of docs/pytorch-recipes.md: each line there is run, and what the page says of it is compared."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from puzzlelib_rmsprop.torch import RMSpropGraves  # noqa: E402
from tests.torch.theirs import Theirs, one_thread  # noqa: E402, F401 (a fixture)

PAGE = Path(__file__).parents[2] / "docs" / "pytorch-recipes.md"
RECIPE = re.compile(
    r"^### (?P<name>.+)\n(?:(?!###|```).*\n)*```{code-block} python\n# before\n(?P<old>(?:(?!```).*\n)+?)# after\n"
    r"(?P<new>(?:(?!```).*\n)+?)```\n\n\*\*Same steps:\*\* (?P<same>.*)$",
    re.M,
)


def recipes():
    """The recipes of the page: name -> the old code, the new one, and whether they take the same steps."""
    text = PAGE.read_text(encoding="utf-8")
    found = [(each["name"], (each["old"].strip(), each["new"].strip(), each["same"])) for each in RECIPE.finditer(text)]
    # each heading of the third level is one, each code block but that of the import, and no two have a name
    assert len(dict(found)) == len(found) == len(re.findall("^### ", text, re.M)) == text.count("```{code-block}") - 1
    return dict(found)


RECIPES = recipes()


def rows(pattern):
    """A parameter of a test: the rows that have something in their old line."""
    found = [name for name, (old, _, _) in RECIPES.items() if re.match(pattern, old)]
    assert found
    return pytest.mark.parametrize("row", found)


TORCH, TENSORFLOW, AGENTS, TIMM = r"torch\.optim", r"tf\.|optax\.", r"A2C|DQN", r"create_optimizer_v2"


@pytest.mark.parametrize(
    "old", ["optimizer_class=RMSpropTFLike", '"rmsproptf"', "tf.train.RMSPropOptimizer", "torch.optim.RMSprop"]
)
def test_the_page_has_a_recipe_for(old):
    assert any(old in line for line, _, _ in RECIPES.values())


def test_every_row_is_run():
    run = [name for name, (old, _, _) in RECIPES.items() if re.match("|".join((TORCH, TENSORFLOW, AGENTS, TIMM)), old)]
    assert run == list(RECIPES)
    assert len(run) == 10


def gradients(steps=100):
    """Of very different sizes, and with a mean."""
    rng = np.random.default_rng(0)
    scale = np.logspace(-6, 1, 200)
    for _ in range(steps):
        yield scale * (rng.standard_normal(200) + 0.3)


def numbers_of(line):
    """The arguments of a call of TensorFlow or Optax, in the names of the float64 copy."""
    found = {"momentum": 0.0, "centered": "True" in line, "lr_in_momentum": True, "start": float(line.startswith("tf."))}
    for names, key in (("learning_rate=|rmsprop\\(", "lr"), ("decay=", "alpha"), ("epsilon=|eps=", "eps")):
        found[key] = float(re.search(f"(?:{names})([-.e0-9]+)", line)[1])
    return found


@rows(TENSORFLOW)
def test_of_tensorflow_and_optax(row):
    old, new, same = RECIPES[row]
    assert same.startswith("yes.")
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
    assert same.startswith(("no.", "nearly."))
    first, second = (torch.zeros(200, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizers = [
        eval(line, {"params": [param], "torch": torch, "RMSpropGraves": RMSpropGraves})
        for line, param in ((old, first), (new, second))
    ]
    for optimizer in optimizers:  # one step has no momentum yet: what is compared is one step, from the same averages
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
    # 1e-6: what is added to a parameter is rounded to some 1e-16 of it
    least, most = (0.1 - 1e-6, 1.01 / 1.01**0.5 + 1e-6) if same.startswith("no.") else (1 - 1e-6, 2**0.5 + 1e-6)
    assert ((ratios >= least) & (ratios <= most)).all()
    assert ratios.min() < least + 0.1
    assert ratios.max() > most - 0.1


def test_the_paper_has_epsilon_inside():
    """The rule of the DQN paper's program: two averages, 0.01 added to their difference, then the root."""
    row = next(name for name in RECIPES if "paper's rule" in name)
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
    """A net of timm's in training: the old line and the new one, each with its own gradients."""
    optim = pytest.importorskip("timm.optim")
    old, new, same = RECIPES[row]
    assert same == "yes."
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
    """An agent in training. Where the optimizers are the same, so are the agents, up to float32's digits."""
    library = pytest.importorskip("stable_baselines3")
    like = pytest.importorskip("stable_baselines3.common.sb2_compat.rmsprop_tf_like").RMSpropTFLike
    old, new, same = RECIPES[row]
    names = {"A2C": library.A2C, "DQN": library.DQN, "RMSpropTFLike": like, "RMSpropGraves": RMSpropGraves}
    agents, begins = [], []
    for line in (old, new):
        more = ", learning_starts=50" if line.startswith("DQN") else ""
        # the seed is that of PyTorch's generator, which all agents share: one after the other
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
    assert apart <= 1e-5 if same == "yes." else apart > 1e-5
