#!/usr/bin/env python3
"""lazy_libraries.py TOOLKIT OUT: archives OUT/lib/lib{cuda,cublas,cublasLt,curand,nvrtc}.a that the linker takes for the
CUDA libraries. Each function in them is a jump through a table; its entry first leads to lazy_library.c, which opens the
real library. A program linked so names no CUDA library as needed, and starts where there is none: its calls then fail
with the library's own error code. The runtime library is linked statically. For x86-64 Linux."""

import os
import platform
import re
import subprocess
import sys
from glob import glob
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Library, file to open, what its functions return where it is missing.
LIBRARIES = [
    ("cuda", "libcuda.so.1", 100),  # CUDA_ERROR_NO_DEVICE
    ("cublas", "libcublas.so.13", 1),  # CUBLAS_STATUS_NOT_INITIALIZED
    ("cublasLt", "libcublasLt.so.13", 1),
    ("curand", "libcurand.so.10", 203),  # CURAND_STATUS_INITIALIZATION_FAILED
    ("nvrtc", "libnvrtc.so.13", 1),  # NVRTC_ERROR_OUT_OF_MEMORY, its first error
]


def exported(library: Path) -> set[str]:
    lines = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    return {line.split()[2].split("@")[0] for line in lines.splitlines() if line.split()[1] in "TWi"}


def driver_functions(toolkit: Path) -> set[str]:
    """The driver comes with the GPU, not with the toolkit: its functions are those that headers and bindings name."""
    word = re.compile(r"\bcu[A-Z]\w*")
    names = set()
    for header in ["cuda.h", "cudaTypedefs.h", "cudaProfiler.h"]:
        path = toolkit / "include" / header
        names |= set(word.findall(path.read_text())) if path.exists() else set()
    cargo = os.environ.get("CARGO_HOME", str(Path.home() / ".cargo"))
    for bindings in glob(f"{cargo}/registry/src/*/cudarc-*/src/driver/sys/mod.rs"):
        names |= set(re.findall(r"pub fn (cu[A-Z]\w*)", Path(bindings).read_text()))
    return names


def jumps(table: str, names: list[str]) -> str:
    """Each function jumps to what its slot holds. At first that is its own second half, which saves every register that
    can carry an argument, resolves the function, and jumps there as if nothing had happened."""
    integers = ["rdi", "rsi", "rdx", "rcx", "r8", "r9", "rax"]
    text = [".text"]
    for index, name in enumerate(names):
        text += [f".globl {name}", f".type {name}, @function", f"{name}:", "endbr64", f"jmp *{table}_slots+{8 * index}(%rip)"]
        text += [f".Lfirst{index}:", "endbr64", f"pushq ${index}", f"jmp .Lresolve"]
    # On entry the stack holds the index and the return address: 16 bytes, so 7 pushes and 136 bytes keep it aligned to 16.
    text += [".Lresolve:"] + [f"pushq %{register}" for register in integers] + ["subq $136, %rsp"]
    text += [f"movups %xmm{i}, {16 * i}(%rsp)" for i in range(8)]
    text += ["movq 192(%rsp), %rdi", f"call {table}_resolve", "movq %rax, %r11"]
    text += [f"movups {16 * i}(%rsp), %xmm{i}" for i in range(8)]
    text += ["addq $136, %rsp"] + [f"popq %{register}" for register in reversed(integers)] + ["addq $8, %rsp", "jmp *%r11"]
    text += [".section .data.rel.local, \"aw\"", ".balign 8", f".globl {table}_slots", f".hidden {table}_slots", f"{table}_slots:"]
    text += [f".quad .Lfirst{index}" for index in range(len(names))]
    text += [f".globl {table}_names", f".hidden {table}_names", f"{table}_names:"]
    text += [f".quad .Lname{index}" for index in range(len(names))]
    text += [".section .rodata"] + [f".Lname{index}: .asciz \"{name}\"" for index, name in enumerate(names)]
    return "\n".join(text + ['.section .note.GNU-stack, "", @progbits', ""])


def main() -> None:
    toolkit, out = Path(sys.argv[1]), Path(sys.argv[2])
    if platform.machine() != "x86_64":
        sys.exit("the lazy libraries are x86-64 assembly; link against an installed toolkit here (docs/gpu.md)")
    work, lib = out / "work", out / "lib"
    work.mkdir(parents=True, exist_ok=True)
    lib.mkdir(exist_ok=True)
    for name, file, failure in LIBRARIES:
        functions = driver_functions(toolkit) if name == "cuda" else exported(toolkit / "lib" / file)
        functions = sorted(function for function in functions if function.startswith("cu" if name == "cuda" else name) or name == "nvrtc")
        table, source = f"lazy_{name}", work / f"{name}.S"
        source.write_text(jumps(table, functions))
        defines = [f'-DLIBRARY="{file}"', f"-DFAILURE={failure}", f"-DTABLE(x)={table}_##x"]
        objects = [str(work / f"{name}_jumps.o"), str(work / f"{name}.o")]
        subprocess.run(["gcc", "-c", source, "-o", objects[0]], check=True)
        subprocess.run(["gcc", "-O2", "-Wall", "-fPIC", *defines, "-c", HERE / "lazy_library.c", "-o", objects[1]], check=True)
        archive = lib / f"lib{name}.a"
        archive.unlink(missing_ok=True)
        subprocess.run(["ar", "crs", archive, *objects], check=True)
        print(f"{archive.name}: {len(functions)} functions of {file}")
    runtime = (toolkit / "lib" / "libcudart_static.a").resolve()
    (lib / "libcudart.a").write_bytes(runtime.read_bytes())
    for name in ["lib64", "include"]:
        link = out / name
        link.unlink(missing_ok=True)
        link.symlink_to("lib" if name == "lib64" else toolkit.resolve() / "include")


main()
