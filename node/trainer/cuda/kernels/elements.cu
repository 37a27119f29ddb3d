// Ops that meet each element by itself: rotary positions, activations, dropout, the optimiser's step.
#include "common.cuh"

// Turns the first `heads` heads of each row in place; element i of a head turns with element i + pairs.
template <typename T>
__device__ void rope(
    T *x, const float *cos, const float *sin, const u32 *positions, u32 rows, u32 width, u32 heads, u32 pairs, float direction) {
    u64 count = (u64)rows * heads * pairs;
    for (u64 at = grid_index(); at < count; at += grid_threads()) {
        u32 pair = at % pairs, head = at / pairs % heads;
        u64 row = at / pairs / heads;
        u64 angle = (u64)positions[row] * pairs + pair;
        float c = cos[angle], s = direction * sin[angle];
        T *first = x + row * width + head * 2 * pairs + pair, *second = first + pairs;
        float a = wide(*first), b = wide(*second);
        set(*first, a * c - b * s);
        set(*second, b * c + a * s);
    }
}

// Numbers of node/trainer/src/models/kernels/activation.rs in its order.
enum { SILU = 0, GELU_TANH = 1, GELU = 2 };

// Value and derivative.
__device__ __forceinline__ void activation(u32 kind, float x, float &value, float &slope) {
    if (kind == SILU) {
        float s = 1.0f / (1.0f + expf(-x));
        value = x * s;
        slope = s * (1.0f + x * (1.0f - s));
    } else if (kind == GELU_TANH) {
        const float root = 0.7978845608f, cubic = 0.044715f;
        float t = tanhf(root * (x + cubic * x * x * x));
        value = 0.5f * x * (1.0f + t);
        slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * root * (1.0f + 3.0f * cubic * x * x);
    } else {
        float normal = 0.5f * (1.0f + erff(x * 0.7071067812f));
        value = x * normal;
        slope = normal + x * 0.3989422804f * expf(-0.5f * x * x);
    }
}

template <typename T>
__device__ void activate(const T *x, T *y, u64 count, u32 kind) {
    for (u64 at = grid_index(); at < count; at += grid_threads()) {
        float value, slope;
        activation(kind, wide(x[at]), value, slope);
        set(y[at], value);
    }
}

template <typename T>
__device__ void activate_backward(const T *x, const T *g, T *dx, u64 count, u32 kind) {
    for (u64 at = grid_index(); at < count; at += grid_threads()) {
        float value, slope;
        activation(kind, wide(x[at]), value, slope);
        set(dx[at], wide(g[at]) * slope);
    }
}

// Rows of x are gate | up, each `width` wide; `count` elements of y.
template <typename T>
__device__ void gate(const T *x, T *y, u64 count, u32 width, u32 kind) {
    for (u64 at = grid_index(); at < count; at += grid_threads()) {
        u64 gate = at / width * 2 * width + at % width;
        float value, slope;
        activation(kind, wide(x[gate]), value, slope);
        set(y[at], value * wide(x[gate + width]));
    }
}

template <typename T>
__device__ void gate_backward(const T *x, const T *g, T *dx, u64 count, u32 width, u32 kind) {
    for (u64 at = grid_index(); at < count; at += grid_threads()) {
        u64 gate = at / width * 2 * width + at % width;
        float value, slope, gradient = wide(g[at]), up = wide(x[gate + width]);
        activation(kind, wide(x[gate]), value, slope);
        set(dx[gate], gradient * up * slope);
        set(dx[gate + width], gradient * value);
    }
}

// The generator of node/trainer/src/models/kernels/dropout.rs, bit for bit.
template <typename T>
__device__ void dropout(const T *x, T *y, u64 count, u32 threshold, float keep, u64 seed) {
    for (u64 at = grid_index(); at < count; at += grid_threads()) {
        u32 h = (u32)at * 0x9e3779b9u ^ (u32)seed;
        h ^= h >> 16;
        h = h * 0x85ebca6bu ^ (u32)(seed >> 32);
        h ^= h >> 13;
        h *= 0xc2b2ae35u;
        h ^= h >> 16;
        set(y[at], h < threshold ? 0.0f : wide(x[at]) * keep);
    }
}

#define ENTRY(T, name)                                                                                                    \
    extern "C" __global__ void rope_##name(                                                                               \
        T *x, const float *cos, const float *sin, const u32 *positions, u32 rows, u32 width, u32 heads, u32 pairs,        \
        float direction) {                                                                                                \
        rope<T>(x, cos, sin, positions, rows, width, heads, pairs, direction);                                            \
    }                                                                                                                     \
    extern "C" __global__ void activate_##name(const T *x, T *y, u64 count, u32 kind) { activate<T>(x, y, count, kind); } \
    extern "C" __global__ void activate_backward_##name(const T *x, const T *g, T *dx, u64 count, u32 kind) {             \
        activate_backward<T>(x, g, dx, count, kind);                                                                      \
    }                                                                                                                     \
    extern "C" __global__ void gate_##name(const T *x, T *y, u64 count, u32 width, u32 kind) {                            \
        gate<T>(x, y, count, width, kind);                                                                                \
    }                                                                                                                     \
    extern "C" __global__ void gate_backward_##name(const T *x, const T *g, T *dx, u64 count, u32 width, u32 kind) {      \
        gate_backward<T>(x, g, dx, count, width, kind);                                                                   \
    }                                                                                                                     \
    extern "C" __global__ void dropout_##name(const T *x, T *y, u64 count, u32 threshold, float keep, u64 seed) {         \
        dropout<T>(x, y, count, threshold, keep, seed);                                                                   \
    }
FOR_EACH_DTYPE(ENTRY)

// AdamW as node/trainer/src/models/kernels/adamw.rs has it, on f32 masters and moments.
extern "C" __global__ void adamw(
    float *p, float *m, float *v, const float *g, u64 count, float beta1, float beta2, float epsilon, float keep, float rate,
    float root_correction, float gradient_scale) {
    for (u64 at = grid_index(); at < count; at += grid_threads()) {
        float gradient = g[at] * gradient_scale;
        float first = m[at] * beta1 + gradient * (1.0f - beta1);
        float second = v[at] * beta2 + gradient * gradient * (1.0f - beta2);
        m[at] = first;
        v[at] = second;
        p[at] = p[at] * keep - rate * first / (sqrtf(second) / root_correction + epsilon);
    }
}

// Each block's sum of squares.
extern "C" __global__ void squared_sums(const float *g, float *sums, u64 count) {
    float sum = 0.0f;
    for (u64 at = grid_index(); at < count; at += grid_threads()) sum += g[at] * g[at];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
