"""PyTorch's tensors as a family of arrays for tests, if PyTorch is installed."""

import importlib.util

import numpy as np


def add_to(arrays, kind):
    """Adds tensors to the families of arrays."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    arrays["torch"] = kind("torch", make, host, torch.Tensor)


def make(content):
    """Returns a tensor with a copy of a NumPy array."""
    import torch

    content = np.array(content)
    if content.dtype.name == "bfloat16":
        return torch.from_numpy(content.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(content)


def host(tensor):
    """Returns a NumPy view of a tensor's memory."""
    import torch

    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()
