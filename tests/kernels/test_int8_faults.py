"""Faults planted in the code of 8-bit state: the tests of test_int8_state.py catch each of them."""

import pytest

from puzzlelib_rmsprop.kernels import cpu, layout
from tests.kernels import test_int8_state
from tests.kernels.kernel_modules import compiled, compiled_anew

KIND = "float, int8, float, false"
# the fault, the file, the right text, the wrong text
FAULTS = [
    ("a variance rounded to 0", "int8_state.h", "larger(code, x > 0.0f)", "code"),
    ("a variance of 0 that is above 0", "int8_state.h", "larger(code, x > 0.0f)", "larger(code, 1)"),
    (
        "no clamp of the last code",
        "int8_state.h",
        "(bits < TWO + (LAST << CUT) ? bits : TWO + (LAST << CUT)) >> CUT",
        "bits >> CUT",
    ),
    ("another last code", "int8_state.h", "SignedCodes<2, 5, 123>", "SignedCodes<2, 5, 124>"),
    ("a last code too low", "int8_state.h", "SignedCodes<3, 4, 127>", "SignedCodes<3, 4, 126>"),
    ("another form", "int8_state.h", "SignedCodes<3, 4, 127>", "SignedCodes<2, 5, 123>"),
    ("a sign lost", "int8_state.h", "& 0x7Fu) | (bits_of(x) >> 24 & 0x80u)", "& 0x7Fu)"),
    ("NaN that is a number", "int8_state.h", "largest > 0x7F800000u ? NAN_SCALE : held", "held"),
    ("infinity that is NaN", "int8_state.h", "largest > 0x7F800000u", "largest >= 0x7F800000u"),
    ("a scale whose steps are subnormal", "int8_state.h", "exponent < 20 ? 20", "exponent < 16 ? 16"),
    ("a least scale too high", "int8_state.h", "exponent < 20 ? 20", "exponent < 21 ? 21"),
    ("a scale without its end", "int8_state.h", "exponent > 253 ? 253", "exponent > 254 ? 254"),
    ("rounded to nearest", "int8_state.h", "+ 2.0f) + random;", "+ 2.0f) + (1u << (CUT - 1));"),
    ("cut off", "int8_state.h", "+ 2.0f) + random;", "+ 2.0f) + 0 * random;"),
    ("one random number of a block", "int8_state.h", "random ^ own >> (32 - CUT)", "random ^ own * 0"),
    ("less bits of an element", "int8_state.h", "own >> (32 - CUT)", "own >> (33 - CUT)"),
    (
        "the bits of another state",
        "int8_state.h",
        "variance(random >> (32 - VarianceCodes::CUT))",
        "variance(random & ((1u << VarianceCodes::CUT) - 1))",
    ),
    ("bits of mg and delta that are the same", "int8_state.h", "random >> 7 & ", "random & "),
    ("NaN codes that are kept", "cpu_tiles.h", "memset(codes, 0, BLOCK);", "(void)codes;"),
    (
        "the scale of mg for the variance",
        "cpu_tiles.h",
        "VarianceCodes::step_of(scales[1])",
        "VarianceCodes::step_of(scales[0])",
    ),
    (
        "the scale of mg for delta's codes",
        "cpu_tiles.h",
        "delta + i, d_scales[b], bits.delta",
        "delta + i, m_scales[b], bits.delta",
    ),
    (
        "scales in each other's place",
        "cpu_tiles.h",
        "scales[b * STATES + 1] = static_cast<unsigned char>(v_scales[b])",
        "scales[b * STATES + 1] = static_cast<unsigned char>(m_scales[b])",
    ),
    (
        "a part of a block without its largest",
        "cpu_tiles.h",
        "magnitude_of(from[b * 64 + 48 + i])",
        "magnitude_of(from[b * 64 + 32 + i])",
    ),
    (
        "halves that are not all",
        "cpu_tiles.h",
        "larger(of_8[b * 8 + i], of_8[b * 8 + 4 + i])",
        "larger(of_8[b * 8 + i], of_8[b * 8 + i])",
    ),
    ("the largest by its sign", "int8_state.h", "bits_of(x) & 0x7FFFFFFFu", "bits_of(x)"),
    ("scales that do not go on", "cpu_tiles.h", "low += SPAN, scales += SPAN / BLOCK * STATES", "low += SPAN"),
    ("the random number of the tile", "cpu_tiles.h", "random.before(first + i)", "random.before(i)"),
    ("a tail without its variance", "cpu_tiles.h", "memcpy(variance + low, v, left);", ""),
    ("a tail of a whole block", "cpu_tiles.h", "memcpy(delta + low, d, left);", "memcpy(delta + low, d, BLOCK);"),
    ("a decay in the momentum", "cpu_tiles.h", "p = decayed(before, rd, decay);", "rd -= decay * before, p = before + rd;"),
    ("scales of the segment's begin", "cpu_loops.cpp", "low / BLOCK * STATES", "0 / BLOCK * STATES"),
    (
        "blocks cut between threads",
        "cpu_loops.cpp",
        "? from_next_block(begin - segment.begin) : 0;",
        "? begin - segment.begin : 0;",
    ),
    (
        "blocks in two threads",
        "cpu_loops.cpp",
        "end_here = from_next_block(end - segment.begin)",
        "end_here = (end - segment.begin) / BLOCK * BLOCK",
    ),
]


def check(threads):
    for size in (65, 1023, 1500):
        for decay in (0.0, 3.0):
            test_int8_state.test_blocks_and_their_ends(cpu, size, 1, decay)
    test_int8_state.test_nan_and_infinity_stay_in_their_block(cpu, "float32", "int8", False, ("scale",))
    test_int8_state.test_what_is_too_large_is_the_largest_there_is(cpu, -1)
    for largest in (0.0, 1e-45, 1e-30, 3e38):
        test_int8_state.test_blocks_of_tiny_and_of_huge_numbers(cpu, largest)
    test_int8_state.test_the_kernels_keep_a_state_that_does_not_change(cpu, [20, 21, 127, 253])
    test_int8_state.test_threads_cut_no_block(threads, (4 * layout.PARALLEL_FROM + 77,))
    test_int8_state.test_threads_cut_no_block(threads, (1, layout.PARALLEL_FROM, 63, 0, 20_001, 65, 131))


@compiled
def test_without_a_fault_everything_is_right(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(cpu, "library", compiled_anew(tmp_path, kind=KIND))
    check(threads)


@compiled
@pytest.mark.parametrize(("file", "old", "new"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_a_fault_is_caught(tmp_path, monkeypatch, threads, file, old, new):
    monkeypatch.setattr(cpu, "library", compiled_anew(tmp_path, [(file, old, new)], kind=KIND))
    with pytest.raises(AssertionError):
        check(threads)
