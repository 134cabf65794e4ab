"""Trains a small DQN on CartPole in PyTorch, with RMSpropGraves or two other optimizers.

    python examples/torch_dqn.py --plot dqn.png              # one run
    python examples/torch_dqn.py --compare --plot dqn.png    # three optimizers, five seeds each
    python examples/torch_dqn.py --grid                      # the search for the three learning rates

The DQN paper (Mnih et al., Nature 2015) trains with Graves' rule: centered, epsilon 0.01 inside the root. PyTorch's RMSprop
adds epsilon outside it. Needs torch and numpy, matplotlib for --plot, and gymnasium only for --gymnasium, because this file
has its own CartPole. The result of a run is the mean return of the episodes that end in its last quarter: each step with
the pole up gives a reward of 1, and an episode ends after 500 steps.
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
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass

try:
    import torch
    from torch import nn
except ImportError as error:
    sys.exit(f"{error.name} is missing; this example needs: pip install 'torch>=2.6' matplotlib")

import numpy as np

from puzzlelib_rmsprop.torch import RMSpropGraves

Episodes = list[tuple[int, float]]  # of a run: the step at which each ended, and its return


# --------------------------------------------------------------------------------------- the optimizers

# The values of the DQN paper: alpha 0.95, epsilon 0.01, no momentum in the step. Its "gradient momentum" of 0.95 is the
# decay of the mean gradient that centers the variance. MinAtar uses these values with PyTorch's RMSprop, epsilon outside.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "graves": functools.partial(RMSpropGraves, alpha=0.95, momentum=0.0),
    "rmsprop": functools.partial(torch.optim.RMSprop, alpha=0.95, eps=0.01, momentum=0.0, centered=True),
    "adam": torch.optim.Adam,
}
NAMES = {"graves": "RMSpropGraves", "rmsprop": "torch.optim.RMSprop", "adam": "torch.optim.Adam"}
LABELS = {
    "graves": "RMSpropGraves (epsilon inside the root)",
    "rmsprop": "torch.optim.RMSprop (centered, epsilon outside)",
    "adam": "torch.optim.Adam",
}
GRID = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
BEST = {"graves": 2e-3, "rmsprop": 1e-3, "adam": 2.5e-4}  # the results of --grid
GRID_SEEDS = range(100, 105)  # other seeds than those of --compare


# ------------------------------------------------------------------------------------------ the cart and the pole


class CartPole:
    """CartPole with gymnasium's interface: push the cart left (0) or right (1), 50 times a second, to keep the pole up.

    Equations and constants are those of Barto, Sutton and Anderson (1983) without friction, integrated with Euler's method;
    the limits are those of CartPole-v1. An observation holds position and velocity of the cart, then angle and angular
    velocity of the pole.
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
    """The settings of a run, without the optimizer and its learning rate."""

    steps: int = 20_000
    gymnasium: bool = False
    state_dtype: str | None = None  # for RMSpropGraves only, as eps
    eps: float = 0.01
    batch: int = 64
    memory: int = 10_000
    first: int = 1_000  # steps before training starts
    target_every: int = 500  # steps
    discount: float = 0.99
    explored: int = 5_000  # steps over which the exploration rate falls from 1 to epsilon
    epsilon: float = 0.05


class Memory:
    """A replay memory of the last transitions."""

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


def train(name: str, lr: float, seed: int, settings: Settings, verbose: bool = False) -> Episodes:
    """Trains once and returns the episodes; ``verbose`` prints the progress."""
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
        if verbose and step % 2_000 == 0:
            last = statistics.mean([value for _, value in episodes[-10:]])
            print(f"step {step:6,}  episode {len(episodes):4}  mean return of the last 10 episodes {last:5.1f}", flush=True)
    return episodes


# ----------------------------------------------------------------------------------------------- results


def score(episodes: Episodes, steps: int) -> float:
    """Returns the mean return of the episodes that ended in the last quarter of the run."""
    return statistics.mean([value for step, value in episodes if step > steps * 3 / 4])


def curve(episodes: Episodes, at: np.ndarray) -> np.ndarray:
    """Returns the mean return of the last ten episodes at each of the steps ``at``."""
    steps, returns = np.array(episodes).T
    means = np.array([returns[max(0, end - 10) : end].mean() for end in range(1, len(returns) + 1)])
    return np.interp(at, steps, means)


def spread(values: list[float]) -> tuple[float, float]:
    """Returns mean and standard error; the error of a single value is 0."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.mean(values), error


def plot(path: str, runs: dict[str, list[Episodes]], rates: dict[str, float], steps: int) -> None:
    """Draws the mean return against the step, with a band of one standard error."""
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
    print(f"plot: {path}")


# -------------------------------------------------------------------------------------------- command line


def one_thread() -> None:
    # more threads do not help a net this small, and runs share the cores
    torch.set_num_threads(1)


def all_of(jobs: list[tuple[str, float, int]], settings: Settings) -> list[Episodes]:
    """Trains several times, in one process per core."""
    workers = min(len(jobs), os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")  # a forked process can hang in PyTorch's thread pool
    with concurrent.futures.ProcessPoolExecutor(workers, context, one_thread) as pool:
        waiting = [pool.submit(train, *job, settings) for job in jobs]
        return [future.result() for future in waiting]


def compare(settings: Settings, seeds: int) -> dict[str, list[Episodes]]:
    """Trains with each optimizer; returns the runs by its name."""
    jobs = [(name, BEST[name], seed) for name in OPTIMIZERS for seed in range(seeds)]
    found = iter(all_of(jobs, settings))
    return {name: list(itertools.islice(found, seeds)) for name in OPTIMIZERS}


def table(runs: dict[str, list[Episodes]], steps: int) -> None:
    """Prints the results of :func:`compare`."""
    print(f"{'optimizer':<20} {'lr':>7}   mean return in the last quarter, each seed")
    for name, trainings in runs.items():
        scores = [score(episodes, steps) for episodes in trainings]
        each = " ".join(f"{value:.0f}" for value in scores)
        row = f"{NAMES[name]:<20} {BEST[name]:>7g}   {'%5.1f +- %4.1f' % spread(scores)}   each: "
        print(textwrap.fill(row + each, 80, subsequent_indent=" " * len(row)))


def grid(settings: Settings) -> None:
    """Trains with each learning rate, and prints the results."""
    jobs = [(name, lr, seed) for lr in GRID for name in OPTIMIZERS for seed in GRID_SEEDS]
    many = f"{len(jobs)} times, {settings.steps:,} steps each: means of {len(GRID_SEEDS)} seeds"
    print(f"Training a DQN on CartPole {many}", flush=True)
    found = iter(all_of(jobs, settings))
    print(f"{'lr':<9}" + "".join(f"{name:>22}" for name in NAMES.values()))
    for lr in GRID:
        cells = []
        for _ in OPTIMIZERS:
            scores = [score(episodes, settings.steps) for episodes in itertools.islice(found, len(GRID_SEEDS))]
            cells.append("%.1f +- %.1f" % spread(scores))
        print(f"{lr:<9g}" + "".join(f"{cell:>22}" for cell in cells))


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
        "--optimizer", choices=list(OPTIMIZERS), default="graves", help="optimizer of a single run (default: graves)"
    )
    what.add_argument("--compare", action="store_true", help="compare all three, each at its best learning rate")
    what.add_argument("--grid", action="store_true", help="search for the best learning rates, with other seeds")
    parser.add_argument("--lr", type=float, help="learning rate of a single run (default: the best of the grid)")
    parser.add_argument("--seed", type=natural, default=0, help="random seed of a single run (default: 0)")
    parser.add_argument("--seeds", type=positive, default=5, help="seeds per optimizer for --compare (default: 5)")
    parser.add_argument(
        "--steps", type=positive, default=Settings.steps, help=f"steps of each run (default: {Settings.steps:,})"
    )
    parser.add_argument("--gymnasium", action="store_true", help="use CartPole-v1 of gymnasium")
    parser.add_argument("--eps", type=float, help=f"epsilon of RMSpropGraves (default: {Settings.eps}, as in the paper)")
    parser.add_argument(
        "--state-dtype", choices=["bfloat16", "int8"], help="data type of RMSpropGraves' state (default: float32)"
    )
    parser.add_argument("--plot", metavar="PATH", help="draw the returns to this PNG file")
    args = parser.parse_args()
    if args.lr is not None and (args.compare or args.grid):
        parser.error("--lr is for a single run; --compare and --grid have their own learning rates")
    if args.lr is not None and args.lr < 0:
        parser.error(f"argument --lr: must be at least 0, not {args.lr}")
    if args.optimizer != "graves" and (args.state_dtype or args.eps is not None):
        parser.error(f"--state-dtype and --eps are for RMSpropGraves, not {args.optimizer}")
    if args.eps is not None and not args.eps > 0:
        parser.error(f"argument --eps: must be above 0, not {args.eps}")
    if args.seed and (args.compare or args.grid):
        parser.error("--seed is for a single run; --compare uses seeds 0, 1, ... (their number is --seeds)")
    if args.steps < 1000:
        parser.error(f"argument --steps: must be at least 1000, so that episodes end in the last quarter, not {args.steps}")
    if args.plot and args.grid:
        parser.error("--plot is for a single run or --compare; --grid prints a table only")
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
        print(f"Training a DQN on CartPole: 3 optimizers, {args.seeds} seeds, {args.steps:,} steps each", flush=True)
        runs = compare(settings, args.seeds)
    else:
        one_thread()
        rates[args.optimizer] = BEST[args.optimizer] if args.lr is None else args.lr
        print(f"Training a DQN on CartPole: {args.steps:,} steps, seed {args.seed}")
        print(f"{LABELS[args.optimizer]}, lr {rates[args.optimizer]:g}")
        runs = {args.optimizer: [train(args.optimizer, rates[args.optimizer], args.seed, settings, verbose=True)]}
    if args.plot:
        plot(args.plot, runs, rates, settings.steps)
    print(f"time: {time.perf_counter() - start:.0f} s")
    if args.compare:
        table(runs, settings.steps)
    else:
        print(f"mean return in the last quarter: {score(runs[args.optimizer][0], settings.steps):.1f}")


if __name__ == "__main__":
    main()
