// What all kernels share: the two narrow dtypes, sums over a warp and a block, and the entry points' names.
//
// The same sources compile for the processor (../emulator), where every thread of a block is a fiber: that is how they
// are run where there is no GPU. Hence no more of CUDA is used than is written there.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
typedef __nv_bfloat16 bf16;
typedef __half f16;
__device__ __forceinline__ float wide(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float wide(f16 x) { return __half2float(x); }
__device__ __forceinline__ void set(bf16 &to, float x) { to = __float2bfloat16_rn(x); }
__device__ __forceinline__ void set(f16 &to, float x) { to = __float2half_rn(x); }
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#include "../emulator/emulator.h"
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ void set(float &to, float x) { to = x; }

#define EVERY_LANE 0xffffffffu

__device__ __forceinline__ float warp_sum(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(EVERY_LANE, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, step));
    return x;
}

// Sum over the block's threads, in every thread; blocks are whole warps. The order of additions is fixed.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float parts[32];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    x = warp_sum(x);
    __syncthreads();  // Somebody may still read the parts of an earlier sum.
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    return warp_sum(lane < blockDim.x / 32 ? parts[lane] : 0.0f);
}

__device__ __forceinline__ float block_max(float x) {
    __shared__ float parts[32];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    return warp_max(lane < blockDim.x / 32 ? parts[lane] : -INFINITY);
}

// This thread's place among all threads of a one-dimensional grid, and their number.
__device__ __forceinline__ u64 grid_index() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ u64 grid_threads() { return (u64)gridDim.x * blockDim.x; }

// An entry point for each dtype: NAME_f32, NAME_bf16, NAME_f16.
#define FOR_EACH_DTYPE(entry) entry(float, f32) entry(bf16, bf16) entry(f16, f16)
