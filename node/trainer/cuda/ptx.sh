#!/usr/bin/env bash
# ptx.sh [KERNEL...]: compiles kernels/*.cu (or those named) to the PTX text beside them, which the program carries and the
# driver compiles for its GPU. It needs `nvcc` of CUDA 13.0 (toolkit.sh makes one), not newer: drivers refuse later PTX.
# Each file's first line says of which sources it was made; a test compares it with the sources that are there.
set -euo pipefail
cd "$(dirname "$0")/kernels"
for kernel in "${@:-norm elements softmax flash}"; do
    for name in $kernel; do
        "${NVCC:-nvcc}" -ptx -arch=compute_80 -std=c++17 -O3 "$name.cu" -o "$name.ptx.new"
        hash=$(python3 - common.cuh "$name.cu" <<'PYTHON'
import sys
hash = 0xCBF29CE484222325
for path in sys.argv[1:]:
    for byte in open(path, "rb").read():
        hash = (hash ^ byte) * 0x100000001B3 & (1 << 64) - 1
print(f"{hash:016x}")
PYTHON
        )
        { echo "// FNV-1a of common.cuh and $name.cu: $hash"; cat "$name.ptx.new"; } > "$name.ptx"
        rm "$name.ptx.new"
        echo "$name.ptx: $(grep -c '\.entry' "$name.ptx") kernels"
    done
done
