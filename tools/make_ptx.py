"""Compiles kernels/*.cu to the PTX that the package ships: python tools/make_ptx.py [--check]

PTX for compute capability 7.5 runs on all GPUs since Turing; the driver compiles it for its GPU. nvcc writes the PTX version
of its toolkit into the file, which older drivers refuse, but the kernels need only version 6.3. So this tool lowers the
version, and ptxas, which checks the instructions against it, must accept the result. Then any driver since CUDA 10 does.

The first line of the text names the hash of the source and its headers, the options and the release of nvcc. --check
writes nothing; it reports whether the shipped files belong to the present sources. The text is compared only if nvcc has
the same release, and the compressed bytes never, because another liblzma may compress differently. To read the PTX:
xz -dc puzzlelib_rmsprop/kernels/rmsprop_graves.ptx.xz
"""

from __future__ import annotations

import lzma
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nvcc

ARCH, VERSION = "compute_75", "6.3"


def header(source: Path, release: str) -> str:
    """Returns the first line, with everything that the text depends on; kernels/cuda_source.py reads the hash."""
    return f"// {source.name} {nvcc.source_hash(source.stem)} {' '.join(nvcc.options(ARCH, source.stem))} nvcc {release}"


def made(source: Path) -> str:
    """Returns the PTX of a source."""
    first = header(source, nvcc.release())
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernels.ptx")
        subprocess.run(["nvcc", "-ptx", *nvcc.options(ARCH, source.stem), "-o", ptx, source], check=True)
        text, count = re.subn(r"^\.version \d+\.\d+$", f".version {VERSION}", ptx.read_text(), flags=re.MULTILINE)
        if count != 1:
            raise SystemExit(f"the PTX has {count} version lines, not one")
        ptx.write_text(text)
        for arch in ("sm_75", "sm_90", "sm_120"):
            command = ["nvcc", "-cubin", f"-arch={arch}", "-o", Path(folder, "kernels.cubin"), ptx]
            subprocess.run(command, check=True)
    # nvcc derives the names of internal symbols from the folder of the source
    text = re.sub(r"(_INTERNAL_|_GLOBAL__N__)[0-9a-f]{8}(_\d+_\w+?_cu_)[0-9a-f]{8}", r"\g<1>00000000\g<2>00000000", text)
    comments = re.compile(r"^//.*\n", re.MULTILINE)  # they name the compiler's build, not the code
    return f"{first}\n" + comments.sub("", text).lstrip()


def shipped(source: Path) -> Path:
    """Returns the package's PTX file of a source."""
    return source.with_suffix(".ptx.xz")


def fault(source: Path) -> str | None:
    """Returns why a shipped file does not belong to its source, None if it does."""
    here, target = nvcc.release(), shipped(source)
    try:
        text = lzma.decompress(target.read_bytes()).decode()
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        return f"{target.name} cannot be read ({error})"
    first, _, by = text.partition("\n")[0].rpartition(" nvcc ")
    if first != header(source, here).rpartition(" nvcc ")[0]:
        return f"{target.name} was made from another source or with other options"
    if by != here:
        print(f"{target.name}: same source and options; made by nvcc {by}, but this is {here}: text not compared")
    elif text != made(source):
        return f"{target.name} is not what the source compiles to"
    else:
        print(f"{target.name} is what the source compiles to")
    return None


def main() -> None:
    """Writes the files, or checks them."""
    faults = []
    for source in sorted(nvcc.KERNELS.glob("*.cu")):
        if "--check" in sys.argv:
            faults.append(fault(source))
        else:
            text = made(source)
            packed = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
            shipped(source).write_bytes(packed)
            print(f"{shipped(source).name}: {len(text):,} characters in {len(packed):,} bytes")
    if any(faults):
        raise SystemExit(f"{'; '.join(filter(None, faults))}: run tools/make_ptx.py")


if __name__ == "__main__":
    main()
