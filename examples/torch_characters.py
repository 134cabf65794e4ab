"""Trains a small transformer to guess the next character of the Python manual's text, which every Python ships.

    python examples/torch_characters.py --state-dtype int8

The text is that of `pydoc_data.topics`, what help("for") and the like print: some 465,000 characters in Python 3.11. The
last tenth of it is never trained on; the last line printed is how many bits the net needs for a character of that.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pydoc_data.topics import topics

try:
    import torch
    from torch import nn
except ImportError as error:
    sys.exit(f"{error.name} is missing; install what this example needs: pip install torch")

from puzzlelib_rmsprop.torch import RMSpropGraves

LEARN_RATE, EPSILON = 1e-3, 1e-8
BATCH_SIZE = 16
LENGTH = 64  # of a text in a batch
WIDTH, HEADS, LAYERS = 128, 4, 3


def load() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Training and test text as numbers of characters (n,) int64, and how many characters there are."""
    text = "\n".join(topics.values())
    alphabet = {character: number for number, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([alphabet[character] for character in text])
    cut = len(numbers) * 9 // 10
    return numbers[:cut], numbers[cut:], len(alphabet)


class Block(nn.Module):
    """Attention to what came before, then a net for each place; each is added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_net = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.mixed = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.net = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.attention(self.before_attention(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.mixed(seen.transpose(1, 2).flatten(2))
        return x + self.net(self.before_net(x))


class Guesser(nn.Module):
    """Scores of the next character, at each place of texts (n, LENGTH)."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(characters, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.Sequential(*(Block() for _ in range(LAYERS)), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters))

    def forward(self, texts: torch.Tensor) -> torch.Tensor:
        return self.layers(self.characters(texts) + self.places.weight)


def bits(net: Guesser, texts: torch.Tensor) -> torch.Tensor:
    """Bits a character of texts (n, LENGTH + 1), of which the first is given."""
    return nn.functional.cross_entropy(net(texts[:, :-1]).flatten(0, 1), texts[:, 1:].flatten()) / math.log(2)


def measure(net: Guesser, text: torch.Tensor) -> float:
    """Bits a character of a whole text, cut into pieces."""
    pieces = text.unfold(0, LENGTH + 1, LENGTH)
    with torch.no_grad():
        return sum(bits(net, part).item() * len(part) for part in pieces.split(128)) / len(pieces)


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

    parser.add_argument("--steps", type=positive, default=1000, help="of the optimizer (default: 1000)")
    parser.add_argument("--seed", type=natural, default=0, help="of the net and the batches (default: 0)")
    parser.add_argument(
        "--state-dtype", choices=["bfloat16", "int8"], help="of the optimizer's state: less memory (default: float32)"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    train, test, characters = load()
    net = Guesser(characters)
    optimizer = RMSpropGraves(net.parameters(), lr=LEARN_RATE, eps=EPSILON, state_dtype=args.state_dtype)
    # the learning rate rises at first, and falls along half a cosine
    rise = min(100, args.steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / rise) * (1 + math.cos(math.pi * step / args.steps)) / 2
    )
    size = sum(p.numel() for p in net.parameters())
    print(f"{size:,} parameters; {len(train):,} characters to train on, seed {args.seed}")

    begin, total = time.perf_counter(), 0.0
    for step in range(1, args.steps + 1):
        starts = torch.randint(len(train) - LENGTH, (BATCH_SIZE, 1))
        loss = bits(net, train[starts + torch.arange(LENGTH + 1)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        total += loss.item()
        if step % 100 == 0:
            print(f"step {step:5}  training {total / 100:.3f} bits  {time.perf_counter() - begin:.0f} s", flush=True)
            total = 0.0
    print(f"test: {measure(net, test):.4f} bits a character")


if __name__ == "__main__":
    main()
