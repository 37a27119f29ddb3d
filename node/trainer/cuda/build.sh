#!/usr/bin/env bash
# build.sh [FOLDER]: the `mingle` binary with CUDA on a machine that has neither GPU nor toolkit (docs/gpu.md).
# FOLDER takes the toolkit (1.2 GB) and the build; without it they go to target/cuda.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/../../../target/cuda}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
# The bindings' sources say which functions of the driver are called.
(cd "$here" && cargo fetch --locked)
bash "$here/toolkit.sh" "$folder/toolkit"
source "$folder/toolkit/env.sh"
cd "$here/../.."
cargo build --release --locked --features flash-attn --bin mingle --target-dir "$folder/build"
echo "built $folder/build/release/mingle"
