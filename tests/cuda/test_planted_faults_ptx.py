"""Faults planted in instructions of the shipped PTX: tests of this folder catch each of them."""

import os
import re
import shutil
import subprocess
import sys

import pytest

import puzzlelib_rmsprop
from puzzlelib_rmsprop.kernels import cuda_source
from tests.cuda.test_planted_faults import TESTS

RULE = ["test_numbers.py", "test_rule.py"]
EXTENDED = ["test_extended.py", "test_operations.py", "test_random_rounding.py"]
STATISTICS = ["test_statistics.py"]
MANY, DOUBLE, HALF = "graves_many_float32_float32", "graves_many_float64_float64", "graves_many_float16_float32"
STEP, MASTER, BFLOAT, BYTES = (
    f"graves_extended_{kind}" for kind in ("float32_float32", "float16_float32_master", "float32_bfloat16", "float32_int8")
)
F, R = r"(%f\d+)", r"(%r\d+)"

# A missing .ftz in the rule has no effect if the next instruction flushes its operands.
# The fault: the kernel, a pattern whose first match is replaced, the replacement, and the tests that catch it.
FAULTS = {
    "a product towards zero": (MANY, r"mul\.rn\.ftz", "mul.rz.ftz", RULE),
    "a sum upwards": (MANY, r"add\.rn\.ftz", "add.rp.ftz", RULE),
    "a quotient downwards": (MANY, r"div\.rn\.ftz", "div.rm.ftz", RULE),
    "a root towards zero": (MANY, r"sqrt\.rn\.ftz", "sqrt.rz.ftz", RULE),
    "a coefficient cut off": (MANY, r"cvt\.rn\.ftz\.f32\.f64", "cvt.rz.ftz.f32.f64", RULE),
    "a double's sum towards zero": (DOUBLE, r"add\.rn\.f64", "add.rz.f64", RULE),
    "a double's root towards zero": (DOUBLE, r"sqrt\.rn\.f64", "sqrt.rz.f64", RULE),
    "a difference the other way": (MANY, rf"(sub\.s32 \t){R}, {R}, {R}", r"\1\2, \4, \3", RULE),
    "a quotient the other way": (MANY, rf"(div\.rn\.ftz\.f32 \t){F}, {F}, {F}", r"\1\2, \4, \3", RULE),
    "a product in place of a sum": (MANY, r"add\.rn\.ftz", "mul.rn.ftz", RULE),
    "two of four numbers loaded": (
        MANY,
        r"ld\.global\.v4\.f32 (\t\{%f\d+, %f\d+), %f\d+, %f\d+\}",
        r"ld.global.v2.f32 \1}",
        RULE,
    ),
    "two of four numbers stored": (
        MANY,
        r"st\.global\.v4\.f32 (.*\{%f\d+, %f\d+), %f\d+, %f\d+\}",
        r"st.global.v2.f32 \1}",
        RULE,
    ),
    "numbers in each other's place": (MANY, rf"(ld\.global\.v4\.f32 \t)\{{{F}, {F}", r"\1{\3, \2", RULE),
    "half of an address": (MANY, r"ld\.global\.u64", "ld.global.u32", RULE),
    "half of a parameter": (MANY, r"ld\.param\.u64(.*_param_2\])", r"ld.param.u32\1", RULE),
    "one parameter's place taken for another's": (MANY, r"(ld\.param\.f64 .*_param_0)\+8", r"\1+16", RULE),
    "a segment's number from beside it": (MANY, r"(ld\.global\.f64 .*)\+80\]", r"\1+72]", RULE),
    "a loop that goes on too long": (MANY, r"setp\.ge\.u32", "setp.gt.u32", RULE),
    "a condition the other way": (MANY, r"@%p", "@!%p", RULE),
    "half of a 16-bit vector": (
        HALF,
        r"ld\.global\.v4\.u16 (\t\{%rs\d+, %rs\d+), %rs\d+, %rs\d+\}",
        r"ld.global.v2.u16 \1}",
        RULE,
    ),
    "a shift by another distance": (HALF, rf"(shl\.b32 \t){R}, {R}, 13;", r"\1\2, \3, 12;", RULE),
    "a choice the other way": (HALF, r"(selp\.\w+ \t\S+), (\S+), (\S+),", r"\1, \3, \2,", RULE),
    "a comparison that takes NaN": ("operate_float32", r"setp\.lt\.ftz\.f32", "setp.ltu.ftz.f32", EXTENDED),
    "no wait for the segment's operations": (STEP, r"bar\.sync \t0;", "", EXTENDED),
    "a word of shared memory beside it": (STEP, r"(ld\.shared\.f32 .*)\+4\]", r"\1+8]", EXTENDED),
    "other bits of random numbers": (BFLOAT, rf"(shr\.u32 \t){R}, {R}, 15;", r"\1\2, \3, 14;", EXTENDED),
    "another factor of random numbers": (BFLOAT, r"(mul\.lo\.s32 .*), -(\d+);", r"\1, \2;", EXTENDED),
    "a copy that is not compared": (MASTER, r"setp\.eq\.ftz\.f32", "setp.neu.ftz.f32", EXTENDED),
    "a square not flushed": ("statistics_float32", r"cvt\.ftz\.f64\.f32", "cvt.f64.f32", STATISTICS),
    "no wait for the others' sums": ("statistics_float32", r"(?s)(.*)bar\.sync \t0;", r"\1", STATISTICS),
    "sums of each other": ("statistics_float32", r"(add\.rn\.f64 \t%fd\d+, )(%fd\d+), %fd\d+;", r"\1\2, \2;", STATISTICS),
    "a square that is large": ("statistics_float64", r"setp\.lt\.f64", "setp.gt.f64", STATISTICS),
    "a number taken for NaN": ("statistics_conclude", r"setp\.num\.f64", "setp.nan.f64", STATISTICS),
    "an operation on another number": (
        "operate_float32",
        r"(mul\.rn\.ftz\.f32 \t%f\d+, )(%f\d+), %f\d+;",
        r"\1\2, \2;",
        EXTENDED,
    ),
    "half of a largest number": (BYTES, r"shfl\.sync\.bfly", "shfl.sync.down", EXTENDED),
    "a smaller number for the largest": (BYTES, rf"max\.u32 (\t{R}, {R}, {R};)", r"min.u32 \1", EXTENDED),
    "a byte's neighbour": (BYTES, r"(ld\.global\.u8 .*)\+1\]", r"\1+2]", EXTENDED),
}


def planted(text, kernel, right, wrong):
    """Returns the text with the first match of ``right`` in that kernel replaced by ``wrong``."""
    start = text.index(f".entry {kernel}(")
    end = text.find(".entry ", start + 1) % (len(text) + 1)
    changed, count = re.subn(right, wrong, text[start:end], count=1)
    assert count == 1
    assert changed != text[start:end]
    return text[:start] + changed + text[end:]


@pytest.mark.parametrize(
    ("kernel", "right", "wrong", "tests"), [pytest.param(*fault, id=what) for what, fault in FAULTS.items()]
)
def test_planted_faults_in_the_ptx_are_caught(kernel, right, wrong, tests, simulator, kernels, tmp_path):
    # in a copy of the package with this text, which cannot compile another one
    package, ignored = tmp_path / "puzzlelib_rmsprop", shutil.ignore_patterns("__pycache__", "data")
    shutil.copytree(puzzlelib_rmsprop.__path__[0], package, ignore=ignored)
    shutil.copytree(TESTS, tmp_path / "tests", ignore=ignored)
    text = cuda_source.shipped_ptx("rmsprop_graves")[0].rstrip(b"\0").decode()
    (tmp_path / "planted.ptx").write_text(planted(text, kernel, right, wrong))
    with open(package / "kernels" / "cuda_source.py", "a") as file:
        file.write(
            f'\n\ndef shipped_ptx(file=""):\n    return Path({str(tmp_path / "planted.ptx")!r}).read_bytes() + b"\\0", ""\n'
        )
    with open(package / "kernels" / "cuda_compile.py", "a") as file:
        file.write('\n\ndef compiled(file, arch):\n    raise DependencyError("the planted PTX is not executed")\n')
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "--rootdir=..", "--cuda=sim", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path / "tests" / "cuda",
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "CUSIM_TIMEOUT": "30", "CUSIM_PTX": "1"},
    )
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr
    assert "the planted PTX is not executed" not in done.stdout, done.stdout[-4000:]  # tests did not catch it
    assert done.returncode == 1, "no test has seen it"
