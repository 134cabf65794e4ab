"""Faults planted in the CUDA kernels and in the code that launches them: tests of this folder catch each of them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import puzzlelib_rmsprop

TESTS = Path(__file__).resolve().parents[1]
RULE, NUMBERS, ELEMENTS, GRADIENTS, UPDATES = "rule.h", "numbers.h", "elements.cuh", "gradients.cuh", "rmsprop_graves.cu"
INT8 = "int8_update.cuh"
LAUNCHES, OPTIONS = "cuda.py", "cuda_source.py"

# The fault: the file, the right text, the wrong text. First, faults in the update and in its order on streams.
OF_THE_RULE = {
    "a tail that ends one short": (ELEMENTS, "i < n - between;", "i + 1 < n - between;"),
    "a tail that ends one late": (ELEMENTS, "i < n - between;", "i <= n - between;"),
    "state in each other's place": (
        UPDATES,
        "mg(global<State>(segment.mg) + begin), variance(global<State>(segment.variance) + begin),",
        "mg(global<State>(segment.variance) + begin), variance(global<State>(segment.mg) + begin),",
    ),
    "an index of 32 bits": (ELEMENTS, "begin(u64(chunk.index) * CHUNK)", "begin(chunk.index * u32(CHUNK))"),
    "chunks that start at 0": (ELEMENTS, "begin(u64(chunk.index) * CHUNK)", "begin(0)"),
    "an alignment that is not looked at": (ELEMENTS, "first = aligned != NEVER && aligned < n ? aligned : n;", "first = 0;"),
    "a factor on the rate left out": (
        RULE,
        "learnRate(Real(hyper.learnRate * segment.learnRate))",
        "learnRate(Real(hyper.learnRate))",
    ),
    "dtypes taken for one another": (LAUNCHES, "kind = segment.group, segment.dtype, ", 'kind = segment.group, "", '),
    "a memset off its stream": ("cuda_family.py", "0, nbytes, stream)", "0, nbytes, None)"),
    "a launch off its stream": (
        LAUNCHES,
        "self.function._launch_kernel(self.grid, _BLOCK, self.arguments, 0, stream)",
        "self.function._launch_kernel(self.grid, _BLOCK, self.arguments, 0, None)",
    ),
    "tables that are not waited for": ("cuda_memory.py", "        _stream().synchronize()\n", ""),
    "a set-up that is not waited for": ("optimizer.py", "            family.synchronize()\n", "            pass\n"),
}

# Faults in step options and in statistics.
OF_EXTENDED = {
    "operations from the last to the first": (
        GRADIENTS,
        "g = operated(by[o].kind, by[o].value, by[o].other, g, p);",
        "g = operated(by[count - 1 - o].kind, by[count - 1 - o].value, by[count - 1 - o].other, g, p);",
    ),
    "decay where wc is not above 0": (RULE, "decays && !(wc > 0.0) ?", "decays && wc == 0.0 ?"),
    "decay as if it were lasso": (RULE, "return g + value * p;", "return g + value * (p > Real(0) ? Real(1) : Real(-1));"),
    "a decay that follows the sign of the rate": (
        RULE,
        "std::fabs(hyper.learnRate * segment.learnRate)",
        "(-hyper.learnRate * segment.learnRate)",
    ),
    "a decay not flushed": (RULE, "flushed(delta - flushed(decay * param))", "(delta - decay * param)"),
    "a decay of the last segment": (
        UPDATES,
        "if (threadIdx.x == 0)\n                lost =",
        "if (threadIdx.x == 0 && c == 0)\n                lost =",
    ),
    "no wait for the segment's decay": (
        UPDATES,
        "            __syncthreads();  // the previous segment's factor may be in use\n",
        "",
    ),
    "a clip that swallows NaN": (RULE, "g = g < value ? value : g;", "g = g >= value ? g : value;"),
    "a factor rounded before it is multiplied": (
        RULE,
        "Real(operation.value * (decays ? wc : at_address))",
        "Real(operation.value) * Real(decays ? wc : at_address)",
    ),
    "no wait for the last sum": (GRADIENTS, "    __syncthreads();  // the previous sum", "    // the previous sum"),
    "no wait for the last segment": (
        GRADIENTS,
        "        __syncthreads();  // the previous segment",
        "        // the previous segment",
    ),
    "a skip that is not looked at": (UPDATES, "const bool skip = options.skip && *", "const bool skip = false && *"),
    "a skipped step that keeps its gradient": (UPDATES, "if (skip && !options.zeroGrad)", "if (skip)"),
    "a variable's name left out": (NUMBERS, "mixed(seeds[0] ^ variable)", "mixed(seeds[0])"),
    "a key that does not follow 2**32": (NUMBERS, "element < low ? key_after : key", "key"),
    "state rounded to nearest": (
        NUMBERS,
        "const u32 rounded = (bits + (random & 0xFFFFu)) >> 16;",
        "const u32 rounded = (bits + 0x8000u) >> 16;",
    ),
    "one random number for the whole state": (UPDATES, "store_state(rv, x >> 16, v[k]);", "store_state(rv, x, v[k]);"),
    "parameters of bfloat16 cut off": (NUMBERS, "(bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16", "bits >> 16"),
    "a master copy that is not followed": (RULE, "== widen(param) ? master :", "!= widen(param) ? master :"),
    "a master copy against the user": (
        RULE,
        "return widen(rounded) == widen(param) ? master : widen(param);",
        "return master;",
    ),
    "no look at the copy's alignment": (UPDATES, "(!Kind::MASTER || skip == ahead<N>(master))", "true"),
    "an infinity that counts as a number": (RULE, "return !(g * g - g * g == Real(0));", "return !(g * g == g * g);"),
    "sums in another order": (
        GRADIENTS,
        "add(all[threadIdx.x], all[threadIdx.x + half]);",
        "add(all[threadIdx.x], all[2 * half - 1 - threadIdx.x]);",
    ),
    "lanes that are neighbours": (
        GRADIENTS,
        "part.begin + threadIdx.x, part.begin + part.size, LANES,",
        "part.begin + 32 * threadIdx.x, part.begin + min(part.size, 32 * threadIdx.x + 32), 1,",
    ),
    "a square that is contracted": (
        GRADIENTS,
        "add(mine, {square(g), ",
        "add(mine, {fma(double(g), double(g), mine.sum) - mine.sum, ",
    ),
    "large squares without their scale": (RULE, "root / SHRINK", "root"),
    "a scale without an end": (
        RULE,
        "s.scale * policy.growth > policy.most ? policy.most : s.scale * policy.growth",
        "s.scale * policy.growth",
    ),
    "chunks of every dtype": (GRADIENTS, "if (!(kinds >> segment.kind & 1))", "if (false)"),
    "operations packed once": (
        LAUNCHES,
        "        if operations != self._operations:\n            packed",
        "        if not self._operations:\n            packed",
    ),
    "options packed once": (LAUNCHES, "if group.options is not self._options:", "if self._options is None:"),
    "statistics off their stream": (
        LAUNCHES,
        "self._conclude._launch_kernel((1, 1), (layout.CHUNK_LANES, 1, 1), arguments, 0, stream)",
        "self._conclude._launch_kernel((1, 1), (layout.CHUNK_LANES, 1, 1), arguments, 0, None)",
    ),
    "segments that a captured launch loses": (LAUNCHES, "self._former.append(self._on_device)", "pass"),
}

# Faults in the arithmetic of the rule and at its limits.
OF_NUMBERS = {
    "the other sign": (RULE, "flushed(param + delta)", "flushed(param - delta)"),
    "alpha and beta in each other's place": (RULE, "c.alpha * mg + c.beta * g", "c.beta * mg + c.alpha * g"),
    "beta in the place of gain": (RULE, "c.gain * d * d", "c.beta * d * d"),
    "gain in the place of beta": (RULE, "c.beta * g)", "c.gain * g)"),
    "d of the new mean": (
        RULE,
        "    const Real d = g - mg;\n    mg = flushed(c.alpha * mg + c.beta * g);",
        "    mg = flushed(c.alpha * mg + c.beta * g);\n    const Real d = g - mg;",
    ),
    "another order of the square": (RULE, "c.gain * d * d", "c.gain * (d * d)"),
    "epsilon outside of the root": (RULE, "std::sqrt(variance + c.epsilon)", "(std::sqrt(variance) + c.epsilon)"),
    "no epsilon": (RULE, "std::sqrt(variance + c.epsilon)", "std::sqrt(variance)"),
    "the momentum left out": (RULE, "c.momRate * delta + ", ""),
    "multiply-adds that are contracted": (OPTIONS, "-fmad=false", "-fmad=true"),
    "subnormal floats kept": (OPTIONS, 'ftz = "true" if', 'ftz = "false" if'),
    "subnormal doubles kept": (NUMBERS, "#ifdef FLUSH_DOUBLE", "#ifdef NEVER_DEFINED"),
    "a gradient not flushed": (RULE, "    g = flushed(g);\n", ""),
    "a mean not flushed": (RULE, "mg = flushed(c.alpha * mg + c.beta * g)", "mg = c.alpha * mg + c.beta * g"),
    "a variance not flushed": (
        RULE,
        "variance = flushed(c.alpha * variance + c.gain * d * d)",
        "variance = c.alpha * variance + c.gain * d * d",
    ),
    "a momentum not flushed": (
        RULE,
        "delta = flushed(c.momRate * delta + c.learnRate * g / std::sqrt(variance + c.epsilon))",
        "delta = c.momRate * delta + c.learnRate * g / std::sqrt(variance + c.epsilon)",
    ),
    "a parameter not flushed": (RULE, "param = flushed(param + delta)", "param = param + delta"),
    "a NaN with its sign": (
        NUMBERS,
        "is_nan(x) ? 0x7FC0u : rounded);\n}\n\n// ---- subnormal",
        "is_nan(x) ? (bits >> 16 | 0x40u) : rounded);\n}\n\n// ---- subnormal",
    ),
    "a square that may overflow": (RULE, "return !(g * g - g * g == Real(0));", "return !(g - g == Real(0));"),
    "large squares forgotten": (RULE, "return std::fabs(g) < LARGE ? 0.0 : shrunk * shrunk;", "return 0.0;"),
}

# Faults in 8-bit state. Those in code shared with the CPU are in tests/kernels/test_int8_faults.py.
OF_INT8 = {
    "a team of 32 threads": (INT8, "TEAM = BLOCK / EACH;", "TEAM = 2 * BLOCK / EACH;"),
    "a team of 8 threads": (INT8, "TEAM = BLOCK / EACH;", "TEAM = BLOCK / EACH / 2;"),
    "the mask of the warp's first team": (INT8, "((1u << TEAM) - 1) << (lane & ~(TEAM - 1))", "((1u << TEAM) - 1)"),
    "a largest of some threads": (INT8, "other = TEAM / 2; other;", "other = TEAM / 4; other;"),
    "a largest of what is not there": (INT8, "largest = k < count ? ", "largest = k < EACH + count ? "),
    "the scale of another state": (INT8, "VarianceCodes::step_of(scale[1])", "VarianceCodes::step_of(scale[0])"),
    "another state in its place": (INT8, "encode<DeltaCodes, VECTORS>(rd,", "encode<DeltaCodes, VECTORS>(rm,"),
    "scales that stay": (INT8, "*scale = static_cast<unsigned char>(found);", ";"),
    "scales of the first chunk": (INT8, "+ begin / BLOCK * STATES", "+ 0 * begin"),
    "NaN codes that are kept": (INT8, "found == NAN_SCALE ? 0 : word", "word"),
    "random bits of each thread's own": (INT8, "more.random(i / BLOCK * BLOCK)", "more.random(i)"),
    "an element's number by thread": (INT8, "RandomBits::own(i % BLOCK + k)", "RandomBits::own(k)"),
    "an alignment that is not looked at": (INT8, "!ahead<EACH>(param) && !ahead<EACH>(grad) && ", "!ahead<EACH>(param) && "),
    "teams that go one by one": (INT8, "i / BLOCK * BLOCK < size;", "i < size;"),
    "vectors over the end": (INT8, "vectors && i / BLOCK * BLOCK + BLOCK <= size", "vectors"),
    "a variance rounded to 0": ("int8_state.h", "larger(code, x > 0.0f)", "code"),
    "no last code": ("int8_state.h", "(bits < TWO + (LAST << CUT) ? bits : TWO + (LAST << CUT)) >> CUT", "bits >> CUT"),
}

CAUGHT_BY = [
    (OF_THE_RULE, ["test_rule.py", "test_streams.py", "-k", "every or thousand or side_by_side or late_streams"]),
    (
        OF_EXTENDED,
        [
            *["test_extended.py", "test_operations.py", "test_random_rounding.py", "test_statistics.py"],
            "test_streams.py::test_clipped_and_skipped_on_a_late_stream",
            *["test_capture.py::test_live_hyper_parameters", "test_capture.py::test_a_captured_launch_keeps_its_rows"],
        ],
    ),
    (OF_NUMBERS, ["test_numbers.py"]),
    (OF_INT8, ["test_int8_state.py", "test_extended.py", "-k", "int8"]),
]
CASES = [pytest.param(*fault, tests, id=what) for faults, tests in CAUGHT_BY for what, fault in faults.items()]


def plant(package, file, right, wrong):
    """Replaces ``right``, which must occur once in one file of that name, by ``wrong``."""
    (changed,) = [path for path in package.rglob(file) if right in path.read_text()]
    text = changed.read_text()
    assert text.count(right) == 1
    changed.write_text(text.replace(right, wrong))


@pytest.mark.parametrize(("file", "right", "wrong", "tests"), CASES)
def test_planted_faults_are_caught(file, right, wrong, tests, simulator, kernels, tmp_path):
    # in a copy of the package and the tests, which compiles its kernels again
    package, ignored = tmp_path / "puzzlelib_rmsprop", shutil.ignore_patterns("__pycache__", "*.ptx.xz", "data")
    shutil.copytree(puzzlelib_rmsprop.__path__[0], package, ignore=ignored)
    shutil.copytree(TESTS, tmp_path / "tests", ignore=ignored)
    plant(package, file, right, wrong)
    own = {"PYTHONPATH": str(tmp_path), "PUZZLELIB_RMSPROP_CACHE_DIR": str(tmp_path / "cache"), "CUSIM_TIMEOUT": "30"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "--rootdir=..", "--cuda=sim", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path / "tests" / "cuda",
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | own,
    )
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr
    assert "could not compile" not in done.stdout, done.stdout[-4000:]  # tests did not catch it
    assert done.returncode == 1
    assert " failed" in done.stdout
