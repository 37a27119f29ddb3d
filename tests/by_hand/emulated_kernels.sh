#!/usr/bin/env bash
# The CUDA kernels' sources run on the processor, through the same Rust code that launches them on a GPU, against the
# portable ops. It needs a C++ compiler and no GPU; some minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
node/trainer/cuda/emulator/build.sh "$folder/emulator.so"
MINGLE_CUDA_EMULATOR=$folder/emulator.so cargo test -p mingle-trainer --lib -- kernels::cuda placement --nocapture
