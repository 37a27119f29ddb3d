// Rows of scores or logits: the softmax of attention that is computed by matrix products, and the cross entropy.
#include "common.cuh"

// One block a row of (heads * length, length) scores, in place: the softmax of what its row sees. `window` is how far
// back a row sees, itself included; 0: it sees all.
template <typename T>
__device__ void masked_softmax(T *scores, u32 length, u32 window, float scale) {
    scores += (u64)blockIdx.x * length;
    u32 row = blockIdx.x % length;
    u32 from = window == 0 || row < window ? 0 : row - window + 1, to = window == 0 ? length : row + 1;
    float most = -INFINITY;
    for (u32 i = from + threadIdx.x; i < to; i += blockDim.x) most = fmaxf(most, wide(scores[i]) * scale);
    most = block_max(most);
    float sum = 0.0f;
    for (u32 i = from + threadIdx.x; i < to; i += blockDim.x) sum += expf(wide(scores[i]) * scale - most);
    float factor = 1.0f / block_sum(sum);
    for (u32 i = threadIdx.x; i < length; i += blockDim.x) {
        bool seen = from <= i && i < to;
        set(scores[i], seen ? expf(wide(scores[i]) * scale - most) * factor : 0.0f);
    }
}

// One block a row, over `dp`: p (dp - sum(p dp)) scale. Where p is 0 for being unseen the gradient is 0 too.
template <typename T>
__device__ void softmax_backward(const T *p, T *dp, u32 length, float scale) {
    p += (u64)blockIdx.x * length;
    dp += (u64)blockIdx.x * length;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < length; i += blockDim.x) sum += wide(p[i]) * wide(dp[i]);
    sum = block_sum(sum);
    for (u32 i = threadIdx.x; i < length; i += blockDim.x) set(dp[i], wide(p[i]) * (wide(dp[i]) - sum) * scale);
}

// One block a row: its loss, and over the logits their gradient times `scale`.
template <typename T>
__device__ void cross_entropy(T *logits, const u32 *labels, float *losses, u32 vocabulary, float scale) {
    logits += (u64)blockIdx.x * vocabulary;
    u32 label = labels[blockIdx.x];
    float labelled = wide(logits[label]);
    float most = -INFINITY;
    for (u32 i = threadIdx.x; i < vocabulary; i += blockDim.x) most = fmaxf(most, wide(logits[i]));
    most = block_max(most);
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < vocabulary; i += blockDim.x) sum += expf(wide(logits[i]) - most);
    sum = block_sum(sum);  // Behind it every thread has read the label's logit.
    if (threadIdx.x == 0) losses[blockIdx.x] = most + logf(sum) - labelled;
    float factor = scale / sum;
    for (u32 i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        float p = expf(wide(logits[i]) - most) * factor;
        set(logits[i], i == label ? p - scale : p);
    }
}

#define ENTRY(T, name)                                                                                                    \
    extern "C" __global__ void masked_softmax_##name(T *scores, u32 length, u32 window, float scale) {                    \
        masked_softmax<T>(scores, length, window, scale);                                                                 \
    }                                                                                                                     \
    extern "C" __global__ void softmax_backward_##name(const T *p, T *dp, u32 length, float scale) {                      \
        softmax_backward<T>(p, dp, length, scale);                                                                        \
    }                                                                                                                     \
    extern "C" __global__ void cross_entropy_##name(                                                                      \
        T *logits, const u32 *labels, float *losses, u32 vocabulary, float scale) {                                       \
        cross_entropy<T>(logits, labels, losses, vocabulary, scale);                                                      \
    }
FOR_EACH_DTYPE(ENTRY)
