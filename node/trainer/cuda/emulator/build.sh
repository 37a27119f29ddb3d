#!/usr/bin/env bash
# build.sh OUT.so: the kernels for this machine's processor. tests/by_hand/emulated_kernels.sh runs the tests with it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUT.so}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The entry points after preprocessing are all the kernels there are.
for source in "$here"/../kernels/*.cu; do
    "${CXX:-g++}" -std=c++17 -E -P -x c++ "$source"
done | grep -oE 'extern "C" +void +[a-z0-9_]+' | sed -E 's/.* ([a-z0-9_]+)$/KERNEL(\1)/' | sort -u > "$work/kernels.inc"
"${CXX:-g++}" -std=c++17 -O2 -fno-strict-aliasing -ffp-contract=off -shared -fPIC -w \
    -D"KERNEL_LIST=\"$work/kernels.inc\"" "$here/emulator.cpp" -o "$out"
echo "$(wc -l < "$work/kernels.inc") kernels in $out"
