"""The description of RMSpropGraves for PyTorch's own tests: an ``OptimizerInfo``.

``inputs`` and ``errors`` are called as PyTorch's tests call them; docs/pytorch-tests.md says how to run those with ``INFO``.
"""

import math
import re

import torch
from torch.optim import lr_scheduler
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    get_error_inputs_for_all_optims,
)

from puzzlelib_rmsprop.torch import RMSpropGraves


def inputs(device, dtype=None):
    """Returns valid arguments of the optimizer, without the parameters; new objects in each call."""
    table = {
        "default": {},
        "non-default lr": {"lr": 1e-3},
        "Tensor lr": {"lr": torch.tensor(1e-3)},
        "float64 Tensor lr": {"lr": torch.tensor(1e-3, dtype=torch.float64)},
        "nonzero weight_decay": {"weight_decay": 0.1},
        "decoupled weight_decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
        "maximize": {"maximize": True},
        "maximize, weight_decay": {"maximize": True, "weight_decay": 0.1},
        "maximize, decoupled weight_decay": {"maximize": True, "weight_decay": 0.1, "decoupled_weight_decay": True},
        "not centered": {"centered": False},
        "no momentum": {"momentum": 0.0},
        "as TensorFlow 1 starts": {
            "centered": False,
            "momentum": 0.0,
            "initial_square_avg": 1.0,
            "alpha": 0.99,
            "eps": 1e-5,
        },
        "centered, from 1": {"initial_square_avg": 1.0, "alpha": 0.9, "weight_decay": 0.1},
        "alpha 0": {"alpha": 0.0, "eps": 1e-2},
        "master_weights": {"master_weights": True},
        "everything": {
            "lr": 1e-3,
            "alpha": 0.9,
            "momentum": 0.5,
            "eps": 1e-3,
            "weight_decay": 0.1,
            "decoupled_weight_decay": True,
            "centered": False,
            "maximize": True,
            "initial_square_avg": 0.5,
            "master_weights": True,
        },
    }
    if torch.device(device).type == "cuda":
        table |= {
            "capturable": {"capturable": True},
            "capturable, maximize": {"weight_decay": 0.1, "maximize": True, "capturable": True},
            "Tensor lr with capturable": {"lr": torch.tensor(1e-3), "capturable": True},
        }
    return [OptimizerInput(params=None, kwargs=kwargs, desc=desc) for desc, kwargs in table.items()]


def bfloat16_inputs(device, dtype=None, state=torch.bfloat16):
    """Returns some of them with bfloat16 state, whose stochastic rounding depends on an element's place in the model."""
    chosen = ("default", "decoupled weight_decay", "not centered", "master_weights", "everything")
    examples = [example for example in inputs(device) if example.desc in chosen]
    for example in examples:
        example.kwargs["state_dtype"] = state
        example.desc += f", {str(state).removeprefix('torch.')} state"
    return examples


def int8_inputs(device, dtype=None):
    """Returns the same with 8-bit state, which uses stochastic rounding too."""
    return bfloat16_inputs(device, dtype, torch.int8)


# argument, value, and a part of the message
BAD_ARGUMENTS = [
    ("lr", -1.0, "a finite number, at least 0"),
    ("lr", math.nan, "a finite number, at least 0"),
    ("lr", math.inf, "a finite number, at least 0"),
    ("lr", "0.1", "a number"),
    ("lr", None, "a number"),
    ("lr", torch.tensor(-1.0), "a finite number, at least 0"),
    ("alpha", -0.1, "a finite number, at least 0 and below 1"),
    ("alpha", 1.0, "a finite number, at least 0 and below 1"),
    ("alpha", math.nan, "a finite number, at least 0 and below 1"),
    ("momentum", -1.0, "a finite number, at least 0 and below 1"),
    ("momentum", 1.0, "a finite number, at least 0 and below 1"),
    ("momentum", math.nan, "a finite number, at least 0 and below 1"),
    ("eps", -1e-8, "a finite number"),
    ("eps", 0.0, "a finite number"),
    ("eps", math.inf, "a finite number"),
    ("weight_decay", -0.1, "a finite number, at least 0"),
    ("weight_decay", math.inf, "a finite number, at least 0"),
    ("initial_square_avg", -1.0, "a finite number, at least 0"),
    ("initial_square_avg", math.nan, "a finite number, at least 0"),
    ("state_dtype", torch.float16, "None, torch.bfloat16 or torch.int8"),
    ("state_dtype", torch.uint8, "None, torch.bfloat16 or torch.int8"),
    ("state_dtype", "None", "None, torch.bfloat16 or torch.int8"),
    ("decoupled_weight_decay", 2, "True or False"),
    ("centered", None, "True or False"),
    ("maximize", "yes", "True or False"),
    ("master_weights", -1, "True or False"),
    ("capturable", 0.5, "True or False"),
]


def errors(device, dtype):
    """Returns invalid uses with their messages: PyTorch's own for all optimizers, and each invalid argument of ours."""
    table = get_error_inputs_for_all_optims(device, dtype)
    if torch.device(device).type != "cpu":
        return table
    for name, value, rule in BAD_ARGUMENTS:
        # a number in a tensor is shown as a number
        shown = re.escape(repr(value.item() if isinstance(value, torch.Tensor) else value))
        param = torch.nn.Parameter(torch.randn(2, device=device, dtype=dtype))
        table.append(
            ErrorOptimizerInput(
                OptimizerInput(params=[param], kwargs={name: value}, desc=f"{name}={value!r}"),
                error_type=ValueError,
                error_regex=rf"^{name} must be {rule}.*; got {shown}",
            )
        )
    sparse = torch.nn.Parameter(torch.randn(3, 2, device=device, dtype=dtype))
    sparse.grad = torch.randn(3, 2, device=device, dtype=dtype).to_sparse()
    table.append(
        ErrorOptimizerInput(
            OptimizerInput(params=[sparse], kwargs={}, desc="sparse gradient"),
            error_on=OptimizerErrorEnum.STEP_ERROR,
            error_type=RuntimeError,
            error_regex="sparse",
        )
    )
    return table


SCHEDULERS = {
    "StepLR and ReduceLROnPlateau": [
        lambda optimizer: lr_scheduler.StepLR(optimizer, gamma=0.9, step_size=10),
        lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer),
    ],
    "ExponentialLR and LinearLR": [
        lambda optimizer: lr_scheduler.ExponentialLR(optimizer, gamma=0.99),
        lambda optimizer: lr_scheduler.LinearLR(optimizer, start_factor=0.4, total_iters=4),
    ],
    "CosineAnnealingWarmRestarts": [lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=5, T_mult=2)],
    "PolynomialLR": [lambda optimizer: lr_scheduler.PolynomialLR(optimizer, total_iters=30, power=0.9)],
}

COMMON = {
    "optim_error_inputs_func": errors,
    "scheduler_inputs": tuple(SCHEDULERS.values()),
    # a step is always one native call: there is no foreach, fused or differentiable option
    "supported_impls": (),
    # a state saved without these options, or by torch.optim.RMSprop, can be loaded
    "not_og_supported_flags": (
        "decoupled_weight_decay",
        "centered",
        "maximize",
        "initial_square_avg",
        "state_dtype",
        "master_weights",
        "capturable",
    ),
    "has_capturable_arg": True,
    "supports_sparse": False,
}
INFO = OptimizerInfo(RMSpropGraves, optim_inputs_func=inputs, supports_complex=True, **COMMON)
# PyTorch's tests compare complex parameters bitwise with pairs of reals: the state of a complex one is not rounded
BFLOAT16_INFO = OptimizerInfo(RMSpropGraves, optim_inputs_func=bfloat16_inputs, supports_complex=False, **COMMON)
INT8_INFO = OptimizerInfo(RMSpropGraves, optim_inputs_func=int8_inputs, supports_complex=False, **COMMON)
