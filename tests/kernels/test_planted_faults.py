"""Faults planted in the code that all devices share: tests on the CPU catch each of them (tests/cuda: tests on CUDA)."""

import numpy as np
import pytest

from puzzlelib_rmsprop.kernels import cpu, layout
from tests.kernels import test_kernel, test_kernel_extended
from tests.kernels.kernel_modules import STATE, Buffers, compiled, compiled_anew
from tests.kernels.test_kernel import HYPER

# the fault, the file, the right text, the wrong text
RULE = [
    ("the sign of the step", "rule.h", "param + delta", "param - delta"),
    ("the sign of the difference", "rule.h", "d = g - mg", "d = g + mg"),
    ("alpha and beta swapped", "rule.h", "c.alpha * mg + c.beta * g", "c.beta * mg + c.alpha * g"),
    ("beta in the place of gain", "rule.h", "c.gain * d * d", "c.beta * d * d"),
    ("gain in the place of alpha", "rule.h", "c.alpha * variance", "c.gain * variance"),
    ("the mean square", "rule.h", "c.gain * d * d", "c.gain * g * g"),
    ("the variance before the step", "rule.h", "std::sqrt(variance + c.epsilon)", "std::sqrt(before + c.epsilon)"),
    ("epsilon beside the root", "rule.h", "std::sqrt(variance + c.epsilon)", "(std::sqrt(variance) + c.epsilon)"),
    ("the momentum of the new step", "rule.h", "c.momRate * delta + ", "c.momRate * (delta + "),
    ("another order of the products", "rule.h", "c.gain * d * d", "d * d * c.gain"),
    (
        "rates in the arithmetic's precision",
        "rule.h",
        "Real(hyper.momRate * segment.momRate)",
        "Real(hyper.momRate) * Real(segment.momRate)",
    ),
]
OTHERS = [
    ("decay of another sign", "rule.h", "return g + value * p;", "return g - value * p;"),
    ("a clip that hides NaN", "rule.h", "g = g < value ? value : g;", "g = g > value ? g : value;"),
    (
        "a decay that follows the sign of the rate",
        "rule.h",
        "std::fabs(hyper.learnRate * segment.learnRate)",
        "(hyper.learnRate * segment.learnRate)",
    ),
    ("a decay that grows", "rule.h", "delta - flushed(decay * param)", "delta + flushed(decay * param)"),
    (
        "a decay without the variable's rate",
        "rule.h",
        "std::fabs(hyper.learnRate * segment.learnRate)",
        "std::fabs(hyper.learnRate)",
    ),
    ("a decay where wc is below 0", "rule.h", "return segment.wc > 0.0 ?", "return segment.wc != 0.0 ?"),
    ("no decay", "cpu_tiles.h", "p = decayed(before, d, decay);", "p += 0 * before;"),
    (
        "a decay before the step",
        "rule.h",
        "flushed(param + flushed(delta - flushed(decay * param)))",
        "flushed(flushed(param - flushed(decay * param)) + delta)",
    ),
    ("decay without a wc", "rule.h", "decays && !(wc > 0.0)", "decays && !(wc >= 0.0)"),
    ("the copy where the parameter was written", "rule.h", "? master : widen(param)", "? master : master"),
    ("ties away from zero", "numbers.h", "bits + 0x7FFFu + (bits >> 16 & 1u)", "bits + 0x8000u"),
    ("no random bits", "numbers.h", "(random & 0xFFFFu)", "(random & 0u)"),
    ("the same numbers for all of the state", "cpu_tiles.h", "x >> 16", "x"),
    ("an index of 32 bits", "numbers.h", "high = u32(first >> 32)", "high = 0"),
    ("a square that overflows", "rule.h", "LARGE = 0x1p480", "LARGE = 0x1p1000"),
    ("only NaN is bad", "rule.h", "!(g * g - g * g == Real(0))", "!(g == g)"),
    ("no flushing", "cpu_loops.cpp", "before | FLUSH", "before"),
    ("inputs are not flushed", "cpu_loops.cpp", "FLUSH = 0x8040", "FLUSH = 0x8000"),
]


@pytest.fixture
def library(tmp_path):
    """``library(replacements, flags)`` compiles the library with faults."""
    return lambda replacements=(), flags=(): compiled_anew(tmp_path, replacements, flags)


def check_rule():
    for dtype in ("float32", "float64"):
        test_kernel.test_every_rounding_is_the_formulas(cpu, dtype, 1)
    test_kernel.test_matches_float64(cpu, 100, "float32")
    for dtype in ("float32", "float64"):
        test_kernel_extended.run(cpu, *test_kernel_extended.start(300, dtype), dtype, dtype, False)


def check_everything():
    check_rule()
    for kind in layout.KINDS:
        test_kernel_extended.test_every_size(cpu, *kind, 1041)
    for kind in test_kernel_extended.KINDS_OF_CODE:
        for names in (*((name,) for name in test_kernel_extended.OPS), tuple(test_kernel_extended.OPS)):
            test_kernel_extended.test_every_operation_in_every_order(cpu, *kind, names)
    for kind in test_kernel_extended.KINDS_OF_CODE:
        test_kernel_extended.test_decay_of_the_parameter(cpu, *kind)
    test_kernel_extended.test_decay_of_every_size(cpu)
    test_kernel_extended.test_random_numbers_past_32_bits(cpu, 2**32 - 700)
    for dtype, good, bad in (("float32", 1.8e19, 1.9e19), ("float64", 1.3e154, 1.4e154)):
        test_kernel_extended.test_a_gradient_is_bad_where_its_square_is_not_finite(cpu, dtype, good, bad)
    test_kernel_extended.test_a_norm_that_is_finite_does_not_overflow(cpu, 1e155)
    test_kernel.test_bfloat16_rounds_to_nearest_even(cpu)
    test_kernel.test_subnormal_gradients_and_parameters_are_zero(cpu, "float32")
    check_written_parameters()
    check_no_decay()
    test_kernel.test_state_of_a_dead_unit_ends_in_zeros(cpu, "float32", 2500)


def check_written_parameters():
    """A parameter changed by the user takes precedence over its master weight."""
    buffers = Buffers(np.ones(5, np.float16), master=True)
    buffers.views["param"][:] = 2
    buffers.views["grad"][:] = 0
    cpu.Table([buffers.segment]).update(HYPER)
    assert (buffers.views["master"] == 2).all()


def check_no_decay():
    buffers = Buffers(np.full(3, np.inf, np.float32))
    buffers.views["grad"][:] = 1
    cpu.operate(buffers.segment, 0.0, test_kernel_extended.to_operations([test_kernel_extended.OPS["decay"]]))
    assert (buffers.views["grad"] == 1).all()


@compiled
def test_without_a_fault_everything_is_right(library, monkeypatch):
    monkeypatch.setattr(cpu, "library", library())
    check_everything()


@compiled
@pytest.mark.parametrize(("file", "old", "new"), [fault[1:] for fault in RULE], ids=[fault[0] for fault in RULE])
def test_a_fault_in_the_rule_is_caught(library, monkeypatch, file, old, new):
    more = [(file, old, new)]
    if "before" in new:
        more.append((file, "    variance = flushed(", "    const Real before = variance;\n    variance = flushed("))
    if new.endswith("(delta + "):
        more.append((file, "std::sqrt(variance + c.epsilon))", "std::sqrt(variance + c.epsilon)))"))
    monkeypatch.setattr(cpu, "library", library(more))
    with pytest.raises(AssertionError):
        check_rule()


@compiled
@pytest.mark.parametrize(("file", "old", "new"), [fault[1:] for fault in OTHERS], ids=[fault[0] for fault in OTHERS])
def test_a_fault_beside_the_rule_is_caught(library, monkeypatch, file, old, new):
    monkeypatch.setattr(cpu, "library", library([(file, old, new)]))
    with pytest.raises(AssertionError):
        check_everything()


@compiled
def test_fused_multiply_adds_are_caught(library, monkeypatch):
    with open("/proc/cpuinfo") as file:
        if " fma " not in file.read():
            pytest.skip("this processor has none")
    monkeypatch.setattr(cpu, "library", library(flags=["-O2", "-mfma", "-ffp-contract=fast"]))
    with pytest.raises(AssertionError):
        check_rule()


def test_state_is_named_as_in_the_formula():
    assert STATE == ("mg", "variance", "delta")
