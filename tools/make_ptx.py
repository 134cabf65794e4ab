"""Compiles kernels/*.cu to the PTX that the package ships: python tools/make_ptx.py [--check]

PTX for compute capability 7.5 runs on every GPU from Turing on; the driver compiles it there. nvcc stamps it with the
PTX version of its own toolkit, which only drivers as new as the toolkit take, but the kernels use nothing later than
version 6.3. So the stamp is lowered, and ptxas, which checks instructions against it, has to accept the result: then
any driver from CUDA 10 on does.

The first line names the hash of the source and its headers, the options and nvcc's release. --check compiles nothing
into the package: it says whether what is there was made from the source as it is now. Another release of nvcc writes
another text, so the text is compared only where the release is the same; never the compressed bytes, which another
release of liblzma may write in another way. To read it: xz -dc puzzlelib_rmsprop/kernels/rmsprop_graves.ptx.xz
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
    """The first line: everything that the text depends on. kernels/cuda_source.py looks for the hash in it."""
    return f"// {source.name} {nvcc.source_hash(source.stem)} {' '.join(nvcc.options(ARCH, source.stem))} nvcc {release}"


def made(source: Path) -> str:
    """The text of the PTX file as one source gives it now."""
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
    # nvcc names internal symbols after the folder that the source lies in
    text = re.sub(r"(_INTERNAL_|_GLOBAL__N__)[0-9a-f]{8}(_\d+_\w+?_cu_)[0-9a-f]{8}", r"\g<1>00000000\g<2>00000000", text)
    comments = re.compile(r"^//.*\n", re.MULTILINE)  # the compiler's build, which says nothing about the code
    return f"{first}\n" + comments.sub("", text).lstrip()


def shipped(source: Path) -> Path:
    """The file of the package that is made of a source."""
    return source.with_suffix(".ptx.xz")


def fault(source: Path) -> str | None:
    """Why a shipped file is not what its source compiles to now, or None where it is."""
    here, target = nvcc.release(), shipped(source)
    try:
        text = lzma.decompress(target.read_bytes()).decode()
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        return f"{target.name} cannot be read ({error})"
    first, _, by = text.partition("\n")[0].rpartition(" nvcc ")
    if first != header(source, here).rpartition(" nvcc ")[0]:
        return f"{target.name} was made from another source or with other options"
    if by != here:
        print(f"{target.name}: source and options are as they were; made by nvcc {by}, here is {here}: text not compared")
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
