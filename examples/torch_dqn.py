"""A small DQN that learns to balance a pole, in PyTorch, with RMSpropGraves; and beside it with two other optimizers.

    python examples/torch_dqn.py --plot dqn.png              # one training
    python examples/torch_dqn.py --compare --plot dqn.png    # three optimizers, five seeds each
    python examples/torch_dqn.py --grid                      # how the three learning rates were chosen

The DQN paper (Mnih et al., Nature 2015) trains with Graves' rule: centered, epsilon 0.01 inside the root. PyTorch's RMSprop
adds epsilon outside it. Needs torch and numpy, matplotlib for --plot, and gymnasium for --gymnasium alone: the cart with the
pole is written down here. What counts is the mean return of the episodes in the last quarter of a training: every step with
the pole up is worth 1, and an episode ends after 500.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import copy
import functools
import importlib.util
import itertools
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

try:
    import torch
    from torch import nn
except ImportError as error:
    sys.exit(f"{error.name} is missing; install what this example needs: pip install torch matplotlib")

import numpy as np

from puzzlelib_rmsprop.torch import RMSpropGraves

Episodes = list[tuple[int, float]]  # of a training: the step at which each ended, and its return


# --------------------------------------------------------------------------------------- the optimizers

# The DQN paper's numbers where it has them: alpha 0.95, epsilon 0.01, no momentum in the step; its "gradient momentum" of
# 0.95 is the average that centers the variance. MinAtar passes the same to PyTorch's RMSprop: epsilon outside the root.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "graves": functools.partial(RMSpropGraves, alpha=0.95, momentum=0.0),
    "rmsprop": functools.partial(torch.optim.RMSprop, alpha=0.95, eps=0.01, momentum=0.0, centered=True),
    "adam": torch.optim.Adam,
}
LABELS = {
    "graves": "RMSpropGraves (epsilon inside the root)",
    "rmsprop": "torch.optim.RMSprop (centered, epsilon outside)",
    "adam": "torch.optim.Adam",
}
GRID = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
BEST = {"graves": 2e-3, "rmsprop": 1e-3, "adam": 2.5e-4}  # of GRID by --grid
GRID_SEEDS = range(100, 105)  # not those of --compare


# ------------------------------------------------------------------------------------------ the cart and the pole


class CartPole:
    """A pole on a cart: push it left (0) or right (1) 50 times a second, and keep the pole up. gymnasium's interface.

    The equations and numbers are those of Barto, Sutton and Anderson, 1983, without friction, in steps of Euler's method;
    the limits and 500 steps are those of CartPole-v1. The state: the cart's place and speed, the pole's angle and its speed.
    """

    GRAVITY, CART, POLE, HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
    MOST_STEPS, MOST_PLACE, MOST_ANGLE = 500, 2.4, math.radians(12)

    def reset(self, seed: int | None = None) -> tuple[np.ndarray, dict]:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.state = self.rng.uniform(-0.05, 0.05, 4).tolist()
        self.steps = 0
        return np.array(self.state, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        _, speed, angle, turning = self.state
        force = self.FORCE if action == 1 else -self.FORCE
        sine, cosine, mass = math.sin(angle), math.cos(angle), self.CART + self.POLE
        pushed = (force + self.POLE * self.HALF_LENGTH * turning**2 * sine) / mass
        inertia = self.HALF_LENGTH * (4 / 3 - self.POLE * cosine**2 / mass)
        turn = (self.GRAVITY * sine - cosine * pushed) / inertia
        push = pushed - self.POLE * self.HALF_LENGTH * turn * cosine / mass
        changes = (speed, push, turning, turn)
        self.state = [value + self.SECONDS * change for value, change in zip(self.state, changes, strict=True)]
        self.steps += 1
        fallen = abs(self.state[0]) > self.MOST_PLACE or abs(self.state[2]) > self.MOST_ANGLE
        return np.array(self.state, np.float32), 1.0, fallen, self.steps >= self.MOST_STEPS, {}


def environment(gymnasium: bool):
    if not gymnasium:
        return CartPole()
    import gymnasium as library

    return library.make("CartPole-v1")


# -------------------------------------------------------------------------------------------------- DQN


@dataclass(frozen=True)
class Settings:
    """What a training is made of, besides the optimizer and its rate."""

    steps: int = 20_000
    gymnasium: bool = False
    state_dtype: str | None = None  # this and the next of RMSpropGraves alone
    eps: float = 0.01
    batch: int = 64
    memory: int = 10_000
    first: int = 1_000  # steps before the net is trained
    target_every: int = 500  # steps
    discount: float = 0.99
    explored: int = 5_000  # steps over which epsilon falls from 1 to the next number
    epsilon: float = 0.05


class Memory:
    """The last transitions, in a ring."""

    def __init__(self, size: int, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 1])
        self.states, self.following = np.zeros((2, size, 4), np.float32)
        self.actions = np.zeros(size, np.int64)
        self.rewards, self.goes_on = np.zeros((2, size), np.float32)
        self.seen = 0

    def add(self, state: np.ndarray, action: int, reward: float, following: np.ndarray, fallen: bool) -> None:
        place = self.seen % len(self.actions)
        self.states[place], self.actions[place], self.rewards[place] = state, action, reward
        self.following[place], self.goes_on[place] = following, not fallen
        self.seen += 1

    def draw(self, count: int) -> list[torch.Tensor]:
        chosen = self.rng.integers(0, min(self.seen, len(self.actions)), count)
        parts = (self.states, self.actions, self.rewards, self.following, self.goes_on)
        return [torch.from_numpy(part[chosen]) for part in parts]


def train(name: str, lr: float, seed: int, settings: Settings, told: bool = False) -> Episodes:
    """One training; returns its episodes. ``told``: prints how it goes."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 0])
    net = nn.Sequential(nn.Linear(4, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 2))
    target = copy.deepcopy(net).requires_grad_(False)
    ours = {"state_dtype": settings.state_dtype, "eps": settings.eps} if name == "graves" else {}
    optimizer = OPTIMIZERS[name](net.parameters(), lr=lr, **ours)
    env, memory = environment(settings.gymnasium), Memory(settings.memory, seed)
    episodes: Episodes = []
    state, _ = env.reset(seed=seed)
    total = 0.0
    for step in range(1, settings.steps + 1):
        epsilon = max(settings.epsilon, 1 - (1 - settings.epsilon) * step / settings.explored)
        if rng.random() < epsilon:
            action = int(rng.integers(2))
        else:
            with torch.no_grad():
                action = int(net(torch.from_numpy(state)).argmax())
        following, reward, fallen, over, _ = env.step(action)
        memory.add(state, action, reward, following, fallen)
        state, total = following, total + reward
        if fallen or over:
            episodes.append((step, total))
            state, total = env.reset()[0], 0.0
        if step > settings.first:
            states, actions, rewards, followings, goes_on = memory.draw(settings.batch)
            with torch.no_grad():
                wanted = rewards + settings.discount * goes_on * target(followings).amax(1)
            values = net(states).gather(1, actions[:, None])[:, 0]
            loss = nn.functional.smooth_l1_loss(values, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if step % settings.target_every == 0:
            target.load_state_dict(net.state_dict())
        if told and step % 2_000 == 0:
            late = [value for _, value in episodes[-10:]]
            print(
                f"step {step:6,}  episode {len(episodes):4}  mean return of the last ten {sum(late) / len(late):5.1f}",
                flush=True,
            )
    return episodes


# ---------------------------------------------------------------------------------------- what came of it


def score(episodes: Episodes, steps: int) -> float:
    """Mean return of the episodes that ended in the last quarter of the training."""
    return statistics.mean([value for step, value in episodes if step > steps * 3 / 4])


def curve(episodes: Episodes, at: np.ndarray) -> np.ndarray:
    """Mean return of the last ten episodes, at each of the steps ``at``."""
    steps, returns = np.array(episodes).T
    means = np.array([returns[max(0, end - 10) : end].mean() for end in range(1, len(returns) + 1)])
    return np.interp(at, steps, means)


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard error; of one value the error is 0."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.mean(values), error


def plot(path: str, runs: dict[str, list[Episodes]], rates: dict[str, float], steps: int) -> None:
    """Mean return against the step, with a band of one standard error."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    at = np.linspace(0, steps, 101)[1:]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), constrained_layout=True)
    for name, trainings in runs.items():
        curves = np.array([curve(episodes, at) for episodes in trainings])
        mean = curves.mean(0)
        (line,) = axes.plot(at, mean, label=f"{LABELS[name]}, lr {rates[name]:g}")
        if len(curves) > 1:
            error = curves.std(0, ddof=1) / math.sqrt(len(curves))
            axes.fill_between(at, mean - error, mean + error, color=line.get_color(), alpha=0.2)
    count = max(map(len, runs.values()))
    band = f"mean of {count} seeds with standard error" if count > 1 else "one seed"
    axes.set(title=f"DQN on CartPole, {band}", xlabel="step", ylabel="return, mean of the last 10 episodes", ylim=(0, 510))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=90)
    print(f"curves: {os.path.abspath(path)}")


# -------------------------------------------------------------------------------------------- command line


def one_thread() -> None:
    # a net this small gains nothing from a second one, and trainings run side by side
    torch.set_num_threads(1)


def all_of(jobs: list[tuple[str, float, int]], settings: Settings) -> list[Episodes]:
    """Several trainings, as many at a time as there are cores."""
    workers = min(len(jobs), os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")  # a fork of a process with PyTorch's threads may hang
    with concurrent.futures.ProcessPoolExecutor(workers, context, one_thread) as pool:
        waiting = [pool.submit(train, *job, settings) for job in jobs]
        return [future.result() for future in waiting]


def compare(settings: Settings, seeds: int) -> dict[str, list[Episodes]]:
    jobs = [(name, BEST[name], seed) for name in OPTIMIZERS for seed in range(seeds)]
    found = iter(all_of(jobs, settings))
    runs = {name: list(itertools.islice(found, seeds)) for name in OPTIMIZERS}
    print(f"{'optimizer':<48} {'lr':>7}   mean return in the last quarter")
    for name, trainings in runs.items():
        scores = [score(episodes, settings.steps) for episodes in trainings]
        each = " ".join(f"{value:.0f}" for value in scores)
        print(f"{LABELS[name]:<48} {BEST[name]:>7g}   {'%5.1f +- %4.1f' % spread(scores)}   each: {each}")
    return runs


def grid(settings: Settings) -> None:
    jobs = [(name, lr, seed) for name in OPTIMIZERS for lr in GRID for seed in GRID_SEEDS]
    found = iter(all_of(jobs, settings))
    print(f"{'optimizer':<48}" + "".join(f"{f'lr {lr:g}':>16}" for lr in GRID))
    for name in OPTIMIZERS:
        cells = []
        for _ in GRID:
            scores = [score(episodes, settings.steps) for episodes in itertools.islice(found, len(GRID_SEEDS))]
            cells.append("%.1f +- %.1f" % spread(scores))
        print(f"{LABELS[name]:<48}" + "".join(f"{cell:>16}" for cell in cells))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])

    def positive(text: str) -> int:
        value = int(text)
        if value < 1:
            raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
        return value

    def natural(text: str) -> int:
        if int(text) < 0:
            raise argparse.ArgumentTypeError(f"must be at least 0, not {text}")
        return int(text)

    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--optimizer", choices=list(OPTIMIZERS), default="graves", help="of the one training (default: graves)"
    )
    what.add_argument("--compare", action="store_true", help="train with all three, each at its best rate of the grid")
    what.add_argument("--grid", action="store_true", help="train with all three at five learning rates, on other seeds")
    parser.add_argument("--lr", type=float, help="learning rate of one training (default: the best of the grid)")
    parser.add_argument("--seed", type=natural, default=0, help="of one training (default: 0)")
    parser.add_argument("--seeds", type=positive, default=5, help="trainings of each in --compare (default: 5)")
    parser.add_argument("--steps", type=positive, default=Settings.steps, help=f"of each (default: {Settings.steps:,})")
    parser.add_argument("--gymnasium", action="store_true", help="gymnasium's CartPole-v1 in place of the one in this file")
    parser.add_argument("--eps", type=float, help=f"RMSpropGraves' epsilon (default: {Settings.eps}, the paper's)")
    parser.add_argument(
        "--state-dtype", choices=["bfloat16", "int8"], help="of RMSpropGraves' state: less memory (default: float32)"
    )
    parser.add_argument("--plot", metavar="PATH", help="draw the return as a PNG")
    args = parser.parse_args()
    if args.lr is not None and (args.compare or args.grid):
        parser.error("--lr is for one training; --compare and --grid have their own rates")
    if args.lr is not None and args.lr < 0:
        parser.error(f"argument --lr: must be at least 0, not {args.lr}")
    if args.optimizer != "graves" and (args.state_dtype or args.eps is not None):
        parser.error(f"--state-dtype and --eps are for RMSpropGraves, not {args.optimizer}")
    if args.eps is not None and not args.eps > 0:
        parser.error(f"argument --eps: must be above 0, not {args.eps}")
    if args.seed and (args.compare or args.grid):
        parser.error("--seed is for one training; --compare takes seeds 0, 1, ... (--seeds says how many)")
    if args.steps < 1000:
        parser.error(f"argument --steps: must be at least 1000, or no episode may end in the last quarter, not {args.steps}")
    if args.plot and args.grid:
        parser.error("--grid prints a table and draws nothing; --plot goes with one training or --compare")
    if args.plot and not os.path.isdir(folder := os.path.dirname(args.plot) or "."):
        parser.error(f"--plot {args.plot}: there is no folder {folder}")
    for option, package in (("plot", "matplotlib"), ("gymnasium", "gymnasium")):
        if getattr(args, option) and importlib.util.find_spec(package) is None:
            parser.exit(1, f"{package} is missing, which --{option} needs: pip install {package}\n")
    return args


def main() -> None:
    args = arguments()
    eps = Settings.eps if args.eps is None else args.eps
    settings = Settings(steps=args.steps, gymnasium=args.gymnasium, state_dtype=args.state_dtype, eps=eps)
    start = time.perf_counter()
    if args.grid:
        grid(settings)
        return
    rates = dict(BEST)
    if args.compare:
        runs = compare(settings, args.seeds)
    else:
        one_thread()
        rates[args.optimizer] = BEST[args.optimizer] if args.lr is None else args.lr
        print(f"{LABELS[args.optimizer]}, lr {rates[args.optimizer]:g}, seed {args.seed}")
        runs = {args.optimizer: [train(args.optimizer, rates[args.optimizer], args.seed, settings, told=True)]}
    if args.plot:
        plot(args.plot, runs, rates, settings.steps)
    print(f"{time.perf_counter() - start:.0f} s")
    if not args.compare:
        print(f"mean return in the last quarter: {score(runs[args.optimizer][0], settings.steps):.1f}")


if __name__ == "__main__":
    main()
