"""Decodes 8-bit state by the documented layout, without puzzlelib_rmsprop.torch."""

import numpy as np
import torch

from puzzlelib_rmsprop.kernels import int8_state
from tests.torch.oracle import BUFFERS

KERNEL_NAMES = dict(zip(BUFFERS, ("mg", "variance", "delta"), strict=True))


def size_of_scales(param):
    return 3 * -(-param.numel() // 64)


def in_memory(tensor):
    """Returns a view with its dimensions in memory order, the last one varying fastest."""
    return tensor.permute(sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis)))


def numbers_of(state, name, more=0):
    """Decodes the codes to float64, with ``more`` added to each code's magnitude as far as possible."""
    codes = in_memory(state[name].cpu())
    scales = state["scales"].cpu().numpy().reshape(-1, 3)[:, BUFFERS.index(name)]
    content, sign = codes.reshape(-1).numpy().astype(int), 0 if name == "grad_var" else 128
    magnitudes = np.clip((content & 127 if sign else content) + more, 0, int8_state.CODES[KERNEL_NAMES[name]].last)
    numbers = int8_state.decoded((magnitudes | content & sign).astype(np.uint8), scales, KERNEL_NAMES[name])
    found = torch.empty_like(state[name].cpu(), dtype=torch.float64)
    in_memory(found).copy_(torch.from_numpy(numbers).reshape(codes.shape))
    return found.numpy()


def assert_rounded(state, name, expected, within, what, share=1.0):
    """Checks that each number is one of the two next to the expected one, or the nearest with ``share=0.5``.

    ``within`` allows for previous rounding to float32.
    """
    found = numbers_of(state, name)
    step = np.maximum(abs(numbers_of(state, name, 1) - found), abs(numbers_of(state, name, -1) - found))
    magnitudes = state[name].cpu().numpy() & (255 if name == "grad_var" else 127)
    last = int8_state.CODES[KERNEL_NAMES[name]].last
    # no code is beyond the last one, and a variance above 0 stays above 0
    at_end = (magnitudes == last) | ((name == "grad_var") & (magnitudes == 1))
    step = np.where(at_end, step, share * step)
    wrong = ~(abs(found - expected) <= step + within)
    assert not wrong.any(), f"{what}: {found[wrong]} for {np.asarray(expected)[wrong]}"
