// Root-mean-square and layer norm of rows; the formulas are those of node/trainer/src/models/kernels/norm.rs.
#include "common.cuh"

// Mean (0 without LAYER) and 1 / sqrt(variance + eps) of a row, in every thread of its block.
template <typename T, bool LAYER>
__device__ void moments(const T *x, u32 width, float eps, float &mean, float &r) {
    mean = 0.0f;
    if (LAYER) {
        float sum = 0.0f;
        for (u32 i = threadIdx.x; i < width; i += blockDim.x) sum += wide(x[i]);
        mean = block_sum(sum) / width;
    }
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float centred = wide(x[i]) - mean;
        squares += centred * centred;
    }
    r = 1.0f / sqrtf(block_sum(squares) / width + eps);
}

// One block a row.
template <typename T, typename W, bool LAYER>
__device__ void norm(const T *x, const W *weight, const W *bias, T *y, u32 width, float offset, float eps) {
    x += (u64)blockIdx.x * width;
    y += (u64)blockIdx.x * width;
    float mean, r;
    moments<T, LAYER>(x, width, eps, mean, r);
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float value = (wide(x[i]) - mean) * r * (wide(weight[i]) + offset);
        set(y[i], LAYER ? value + wide(bias[i]) : value);
    }
}

// One block a row: with n = (x - mean) r and d = w g, dx = r (d - mean(d) - n mean(d n)); without LAYER no mean(d).
template <typename T, typename W, bool LAYER>
__device__ void norm_backward(const T *x, const W *weight, const T *g, T *dx, u32 width, float offset, float eps) {
    u64 row = (u64)blockIdx.x * width;
    x += row;
    g += row;
    dx += row;
    float mean, r;
    moments<T, LAYER>(x, width, eps, mean, r);
    float along_one = 0.0f, along_n = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float d = (wide(weight[i]) + offset) * wide(g[i]);
        along_one += d;
        along_n += d * (wide(x[i]) - mean) * r;
    }
    along_n = block_sum(along_n) / width;
    along_one = LAYER ? block_sum(along_one) / width : 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float d = (wide(weight[i]) + offset) * wide(g[i]);
        set(dx[i], r * (d - along_one - (wide(x[i]) - mean) * r * along_n));
    }
}

// Mean and factor of each row, for the weight's gradient.
template <typename T, bool LAYER>
__device__ void norm_rows(const T *x, float *means, float *factors, u32 width, float eps) {
    float mean, r;
    moments<T, LAYER>(x + (u64)blockIdx.x * width, width, eps, mean, r);
    if (threadIdx.x == 0) {
        means[blockIdx.x] = mean;
        factors[blockIdx.x] = r;
    }
}

// One thread a column, one block row of the grid a chunk of the rows: partial sums of n g and of g.
template <typename T>
__device__ void norm_weight(
    const T *x, const T *g, const float *means, const float *factors, float *dw, float *db, u32 rows, u32 width, u32 chunk) {
    u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    u32 from = blockIdx.y * chunk, to = min(from + chunk, rows);
    float of_weight = 0.0f, of_bias = 0.0f;
    for (u32 row = from; row < to; row++) {
        u64 at = (u64)row * width + column;
        of_weight += (wide(x[at]) - means[row]) * factors[row] * wide(g[at]);
        of_bias += wide(g[at]);
    }
    dw[(u64)blockIdx.y * width + column] = of_weight;
    db[(u64)blockIdx.y * width + column] = of_bias;
}

// Likewise: partial sums of the columns.
template <typename T>
__device__ void column_sums(const T *x, float *sums, u32 rows, u32 width, u32 chunk) {
    u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    u32 from = blockIdx.y * chunk, to = min(from + chunk, rows);
    float sum = 0.0f;
    for (u32 row = from; row < to; row++) sum += wide(x[(u64)row * width + column]);
    sums[(u64)blockIdx.y * width + column] = sum;
}

// Weights come in the dtype of x while frozen and in f32 while trained.
#define WITH_WEIGHT(T, name, W, weight_name)                                                                              \
    extern "C" __global__ void rms_##name##_##weight_name(                                                                \
        const T *x, const W *weight, const W *bias, T *y, u32 width, float offset, float eps) {                           \
        norm<T, W, false>(x, weight, bias, y, width, offset, eps);                                                        \
    }                                                                                                                     \
    extern "C" __global__ void layer_##name##_##weight_name(                                                              \
        const T *x, const W *weight, const W *bias, T *y, u32 width, float offset, float eps) {                           \
        norm<T, W, true>(x, weight, bias, y, width, offset, eps);                                                         \
    }                                                                                                                     \
    extern "C" __global__ void rms_backward_##name##_##weight_name(                                                       \
        const T *x, const W *weight, const T *g, T *dx, u32 width, float offset, float eps) {                             \
        norm_backward<T, W, false>(x, weight, g, dx, width, offset, eps);                                                 \
    }                                                                                                                     \
    extern "C" __global__ void layer_backward_##name##_##weight_name(                                                     \
        const T *x, const W *weight, const T *g, T *dx, u32 width, float offset, float eps) {                             \
        norm_backward<T, W, true>(x, weight, g, dx, width, offset, eps);                                                  \
    }
WITH_WEIGHT(float, f32, float, f32)
WITH_WEIGHT(bf16, bf16, float, f32)
WITH_WEIGHT(bf16, bf16, bf16, bf16)
WITH_WEIGHT(f16, f16, float, f32)
WITH_WEIGHT(f16, f16, f16, f16)

#define ENTRY(T, name)                                                                                                    \
    extern "C" __global__ void rms_rows_##name(const T *x, float *means, float *factors, u32 width, float eps) {          \
        norm_rows<T, false>(x, means, factors, width, eps);                                                               \
    }                                                                                                                     \
    extern "C" __global__ void layer_rows_##name(const T *x, float *means, float *factors, u32 width, float eps) {        \
        norm_rows<T, true>(x, means, factors, width, eps);                                                                \
    }                                                                                                                     \
    extern "C" __global__ void norm_weight_##name(                                                                        \
        const T *x, const T *g, const float *means, const float *factors, float *dw, float *db, u32 rows, u32 width,      \
        u32 chunk) {                                                                                                      \
        norm_weight<T>(x, g, means, factors, dw, db, rows, width, chunk);                                                 \
    }                                                                                                                     \
    extern "C" __global__ void column_sums_##name(const T *x, float *sums, u32 rows, u32 width, u32 chunk) {              \
        column_sums<T>(x, sums, rows, width, chunk);                                                                      \
    }
FOR_EACH_DTYPE(ENTRY)
