#!/usr/bin/env bash
# toolkit.sh FOLDER: a CUDA 13.0 toolkit, enough to build `--features cuda`, from NVIDIA's wheels on PyPI. It needs no
# GPU, no driver and no root: Python with pip, gcc and nm. Afterwards `source FOLDER/env.sh`, then use cargo as ever.
#
# 13.0 and no later: newer compilers emit PTX that the drivers of 2025 refuse.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?usage: toolkit.sh FOLDER}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
home=$folder/wheels/nvidia/cu13

if [ ! -e "$home/bin/nvcc" ]; then
    "${PYTHON:-python3}" -m pip install --quiet --no-deps --no-compile --target "$folder/wheels" \
        nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-nvrtc==13.0.88 \
        nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.1.0.3 nvidia-curand==10.4.0.35
fi
# Wheels forget who may execute.
chmod -R u+x "$home/bin" "$home/nvvm/bin"

# The linker asks for names without a version and for a driver library, and the wheels have neither. Both come as
# archives that open the real library when it is first called, so that one binary runs with and without a GPU.
"${PYTHON:-python3}" "$here/lazy_libraries.py" "$home" "$folder/link"

cat > "$folder/env.sh" <<ENV
export PATH="$home/bin:\$PATH" NVCC="$home/bin/nvcc" NVCC_CCBIN="\${NVCC_CCBIN:-gcc}"
export CUDA_HOME="$folder/link" CUDA_PATH="$folder/link" CUDA_ROOT="$folder/link" CUDA_TOOLKIT_ROOT_DIR="$folder/link"
# What is compiled for 8.0 runs on everything newer; there is no GPU here to ask.
export CUDA_COMPUTE_CAP="\${CUDA_COMPUTE_CAP:-80}" CUDARC_CUDA_VERSION=13000
ENV
echo "the toolkit is ready: source $folder/env.sh"
