// As much of CUDA as the kernels use, on a processor: a block's threads are fibers that take turns, so that a barrier is
// a place where a fiber waits until all have come. For testing arithmetic and indices where there is no GPU; slow.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(threads)
#define DYNAMIC_SHARED(name) unsigned char *name = emulator::dynamic_shared

struct dim3 {
    unsigned x, y, z;
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

// The narrow dtypes, rounded to nearest even.
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};
inline float wide(bf16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
inline void set(bf16 &to, float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    to.bits = std::isnan(x) ? 0x7fff : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float wide(f16 x) {
    _Float16 value;
    memcpy(&value, &x.bits, 2);
    return (float)value;
}
inline void set(f16 &to, float x) {
    _Float16 value = (_Float16)x;
    memcpy(&to.bits, &value, 2);
}

inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }

namespace emulator {
extern unsigned char dynamic_shared[];
void wait_for_block();
// Every lane of the warp shows `size` bytes; returns where all 32 lie, 64 bytes apart, until the next exchange.
const unsigned char *exchange(const void *mine, size_t size);
unsigned lane();
}  // namespace emulator

inline void __syncthreads() { emulator::wait_for_block(); }

inline float __shfl_xor_sync(unsigned, float value, int mask) {
    float other;
    memcpy(&other, emulator::exchange(&value, 4) + 64 * (emulator::lane() ^ mask), 4);
    return other;
}

// The matrix instructions, by the tables of the PTX manual.
template <typename T>
inline float half_of(uint32_t word, unsigned which) {
    T value;
    value.bits = (uint16_t)(word >> 16 * which);
    return wide(value);
}

// mma.m16n8k16: element (row, k) of a lies in lane (row % 8) * 4 + (k % 8) / 2, register (row / 8) + 2 (k / 8), half k % 2;
// element (k, column) of b in lane column * 4 + (k % 8) / 2, register k / 8, half k % 2.
template <typename T>
inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T) {
    uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const unsigned char *all = emulator::exchange(mine, sizeof mine);
    auto word = [&](unsigned lane, unsigned index) {
        uint32_t value;
        memcpy(&value, all + 64 * lane + 4 * index, 4);
        return value;
    };
    unsigned lane = emulator::lane();
    for (unsigned e = 0; e < 4; e++) {
        unsigned row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
        float sum = c[e];
        for (unsigned k = 0; k < 16; k++) {
            float left = half_of<T>(word(row % 8 * 4 + k % 8 / 2, row / 8 + 2 * (k / 8)), k % 2);
            float right = half_of<T>(word(column * 4 + k % 8 / 2, 4 + k / 8), k % 2);
            sum += left * right;
        }
        c[e] = sum;
    }
}

// ldmatrix.x4: register m of a lane is row lane / 4, columns 2 (lane % 4) and one more, of matrix m, whose row r begins
// where lane 8 m + r says; transposed, rows and columns change places.
inline void load_matrices(uint32_t (&r)[4], const void *row) {
    const unsigned char *all = emulator::exchange(&row, sizeof row);
    unsigned lane = emulator::lane();
    for (unsigned m = 0; m < 4; m++) {
        const uint16_t *begin;
        memcpy(&begin, all + 64 * (8 * m + lane / 4), sizeof begin);
        if ((uintptr_t)begin % 16) abort();
        memcpy(&r[m], begin + lane % 4 * 2, 4);
    }
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void *row) {
    const unsigned char *all = emulator::exchange(&row, sizeof row);
    unsigned lane = emulator::lane();
    for (unsigned m = 0; m < 4; m++) {
        uint32_t word = 0;
        for (unsigned half = 0; half < 2; half++) {
            const uint16_t *begin;
            memcpy(&begin, all + 64 * (8 * m + lane % 4 * 2 + half), sizeof begin);
            if ((uintptr_t)begin % 16) abort();
            word |= (uint32_t)begin[lane / 4] << 16 * half;
        }
        r[m] = word;
    }
}
