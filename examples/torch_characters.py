"""Trains a small transformer in PyTorch to predict the next character of the Python manual.

    python examples/torch_characters.py --state-dtype int8

The text is `pydoc_data.topics`, which every Python has for help("for") and the like: some 465,000 characters in Python 3.11.
The last tenth of it is the test set. The last line of the output is the loss on it, in bits per character.
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
    sys.exit(f"{error.name} is missing; this example needs: pip install 'torch>=2.6'")

from puzzlelib_rmsprop.torch import RMSpropGraves

LEARN_RATE, EPSILON = 1e-3, 1e-8
BATCH_SIZE = 16
LENGTH = 64  # characters of each text in a batch
WIDTH, HEADS, LAYERS = 128, 4, 3


def load() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Returns training and test text as indices into the alphabet, (n,) int64, and the size of the alphabet."""
    text = "\n".join(topics.values())
    alphabet = {character: number for number, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([alphabet[character] for character in text])
    cut = len(numbers) * 9 // 10
    return numbers[:cut], numbers[cut:], len(alphabet)


class Block(nn.Module):
    """A pre-norm transformer block: causal self-attention and a feed-forward net, each with a residual connection."""

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
    """Gives the logits of the next character at each position of texts (n, LENGTH)."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(characters, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.Sequential(*(Block() for _ in range(LAYERS)), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters))

    def forward(self, texts: torch.Tensor) -> torch.Tensor:
        return self.layers(self.characters(texts) + self.places.weight)


def bits(net: Guesser, texts: torch.Tensor) -> torch.Tensor:
    """Returns the loss on texts (n, LENGTH + 1) in bits per character; the first character is given."""
    return nn.functional.cross_entropy(net(texts[:, :-1]).flatten(0, 1), texts[:, 1:].flatten()) / math.log(2)


def measure(net: Guesser, text: torch.Tensor) -> float:
    """Returns the loss on a long text in bits per character."""
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

    parser.add_argument("--steps", type=positive, default=1000, help="number of optimizer steps (default: 1000)")
    parser.add_argument("--seed", type=natural, default=0, help="random seed (default: 0)")
    parser.add_argument(
        "--state-dtype", choices=["bfloat16", "int8"], help="data type of the optimizer state (default: float32)"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    train, test, characters = load()
    net = Guesser(characters)
    optimizer = RMSpropGraves(net.parameters(), lr=LEARN_RATE, eps=EPSILON, state_dtype=args.state_dtype)
    # linear warm-up, then cosine decay
    rise = min(100, args.steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / rise) * (1 + math.cos(math.pi * step / args.steps)) / 2
    )
    size = sum(p.numel() for p in net.parameters())
    print(f"Training a transformer with {size:,} parameters on {len(train):,} characters, seed {args.seed}")

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
            print(f"step {step:5}  training loss {total / 100:.3f} bits  {time.perf_counter() - begin:.0f} s", flush=True)
            total = 0.0
    print(f"test loss: {measure(net, test):.4f} bits per character")


if __name__ == "__main__":
    main()
