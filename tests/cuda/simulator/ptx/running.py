"""Runs PTX instructions over arrays: each list of instructions is a kernel, each thread processes one element."""

import numpy as np

from tests.cuda.simulator.machine import control, drv

HEADER = ".version 6.3\n.target sm_75\n.address_size 64\n"
# how an element of an array is loaded: its type, the type of the registers and their names
LOADS = {
    np.dtype(np.float32): ("f32", "f32", "%f"),
    np.dtype(np.float64): ("f64", "f64", "%d"),
    **{np.dtype(f"{k}4"): ("b32", "b32", "%r") for k in "ui"},
    **{np.dtype(f"{k}8"): ("b64", "b64", "%q") for k in "ui"},
    **{np.dtype(f"{k}2"): ("b16", "b16", "%h") for k in "uif"},
    **{np.dtype(f"{k}1"): (f"{'s' if k == 'i' else 'u'}8", "b16", "%h") for k in "ui"},
}


def load(text):
    """Loads a module of PTX, which is executed."""
    with control.ptx(True):
        return drv.module_from_buffer(text.encode() + b"\0")


def kernel(name, body, parameters=4, registers=""):
    """A kernel with the addresses in %p0, %p1 and so on, and the index of the thread in %i (%x: 64 bits)."""
    declared = ",\n".join(f"  .param .u64 {name}_{i}" for i in range(parameters))
    loads = "\n".join(f"  ld.param.u64 %p{i}, [{name}_{i}];" for i in range(parameters))
    return f"""
.visible .entry {name}(
{declared}
)
{{
  .reg .pred %c<8>; .reg .b16 %h<24>; .reg .b32 %i; .reg .b32 %r<24>; .reg .b64 %x; .reg .b64 %q<24>;
  .reg .f32 %f<24>; .reg .f64 %d<24>; .reg .b64 %p<{parameters + 8}>;
{registers}
{loads}
  mov.u32 %r23, %ctaid.x;
  mov.u32 %r22, %ntid.x;
  mov.u32 %r21, %tid.x;
  mad.lo.s32 %i, %r23, %r22, %r21;
  cvt.u64.u32 %x, %i;
{body}
  ret;
}}
"""


def on_device(arrays):
    memory = [drv.mem_alloc(max(array.nbytes, 1)) for array in arrays]
    for address, array in zip(memory, arrays, strict=True):
        drv.memcpy_htod(address, np.ascontiguousarray(array))
    return memory


def launch(module, name, arrays, threads, blocks=1):
    """Runs a kernel over arrays, which then hold its results."""
    memory = on_device(arrays)
    module.get_function(name)(*memory, block=(threads, 1, 1), grid=(blocks, 1))
    for address, array in zip(memory, arrays, strict=True):
        drv.memcpy_dtoh(array, address)


def evaluate(forms, operands, dtype):
    """Returns an array of results for each of the ``forms``, applied to each element of the operands.

    In a form D is the result, A, B and C are the operands and P is a predicate, in place of D: ``add.rz.f32 D, A, B``.
    """
    dtype, count = np.dtype(dtype), len(operands[0])
    to, _, result = LOADS[dtype]
    lines, names = [], {}
    for i, operand in enumerate(operands):
        kind, _, prefix = LOADS[operand.dtype]
        names["ABC"[i]] = f"{prefix}{i}"
        lines += [f"mad.lo.u64 %q20, %x, {operand.itemsize}, %p{i + 1};", f"ld.global.{kind} {prefix}{i}, [%q20];"]
    for row, form in enumerate(forms):
        opcode, given = form.split(" ", 1)
        text = "".join({**names, "D": f"{result}10", "P": "%c1"}.get(letter, letter) for letter in given)
        lines.append(f"{opcode} {text};")
        if "P" in given:
            lines.append(f"selp.b32 {result}10, 1, 0, %c1;")
        lines += [
            f"mad.lo.u64 %q20, %x, {dtype.itemsize}, %p0;",
            f"st.global.{to} [%q20+{row * count * dtype.itemsize}], {result}10;",
        ]
    beyond = f"setp.ge.u32 %c0, %i, {count};\n  @%c0 ret;\n  "
    module = load(HEADER + kernel("evaluated", beyond + "\n  ".join(lines), 1 + len(operands)))
    found = np.zeros((len(forms), count), dtype)
    launch(module, "evaluated", [found, *operands], 128, -(-count // 128))
    return found


def same(found, expected):
    """Whether all bits are equal, including signs of zeros. All NaNs are equal."""
    __tracebackhide__ = True
    expected = np.asarray(expected, found.dtype)
    integers = np.dtype(f"u{found.dtype.itemsize}")
    differs = found.view(integers) != expected.view(integers)
    if found.dtype.kind == "f":
        differs &= ~(np.isnan(found) & np.isnan(expected))
    at = np.argwhere(differs)
    assert not len(at), f"{len(at)} differ, first at {at[0]}: {found[tuple(at[0])]!r}, not {expected[tuple(at[0])]!r}"
