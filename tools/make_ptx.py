"""Compiles kernels/*.cu to the PTX that the package ships: python tools/make_ptx.py [--check]

PTX for compute capability 7.5 runs on every GPU from Turing on; the driver compiles it there. nvcc stamps it with the
PTX version of its own toolkit, which only drivers as new as the toolkit take, but the kernels use nothing later than
version 6.3. So the stamp is lowered, and ptxas, which checks instructions against it, has to accept the result: then
any driver from CUDA 10 on does.

--check compiles nothing into the package: it says whether what is there was made from the source as it is now.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

KERNELS = Path(__file__).parent.parent / "puzzlelib_rmsprop" / "kernels"
ARCH, VERSION = "compute_75", "6.3"


def made(source: Path) -> str:
    """The text of the PTX file as one source gives it now."""
    # the options stand in cuda.py, which cannot be imported without PyCUDA
    options = re.search(r'return \[f"-arch=\{arch\}", (.*)\]', (KERNELS / "cuda.py").read_text())
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernels.ptx")
        flags = [flag.strip('" ') for flag in options[1].split(",")]
        subprocess.run(["nvcc", "-ptx", f"-arch={ARCH}", *flags, "-o", ptx, source], check=True)
        text, count = re.subn(r"^\.version \d+\.\d+$", f".version {VERSION}", ptx.read_text(), flags=re.MULTILINE)
        if count != 1:
            raise SystemExit(f"the PTX has {count} version lines, not one")
        ptx.write_text(text)
        for arch in ("sm_75", "sm_90", "sm_120"):
            command = ["nvcc", "-cubin", f"-arch={arch}", "-o", Path(folder, "kernels.cubin"), ptx]
            subprocess.run(command, check=True)
    comments = re.compile(r"^//.*\n", re.MULTILINE)  # the compiler's build, which says nothing about the code
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return f"// {source.name} {digest}\n" + comments.sub("", text).lstrip()


def main() -> None:
    """Writes the files, or checks them."""
    for source in sorted(KERNELS.glob("*.cu")):
        target = source.with_suffix(".ptx")
        text = made(source)
        if "--check" not in sys.argv:
            target.write_text(text)
            print(f"{target.name}: {len(text):,} characters")
        elif not target.is_file() or target.read_text() != text:
            raise SystemExit(f"{target.name} is not what the source compiles to now: run tools/make_ptx.py")
        else:
            print(f"{target.name} is what the source compiles to")


if __name__ == "__main__":
    main()
