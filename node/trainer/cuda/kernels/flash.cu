// Attention that never writes its scores to memory (Dao et al., "FlashAttention", 2022; "FlashAttention-2", 2023), forward
// and backward, for packed sequences with grouped heads, on the tensor cores of compute capability 8.0 and later.
//
// A row of `qkv` holds a token's query heads, key heads and value heads. A block owns 64 rows of one sequence, 16 to each
// of its four warps: rows of queries in the forward and for dq, rows of keys for dk and dv. Nothing is added atomically,
// so the same input gives the same bits.
//
// The layouts of fragments are those of the PTX manual for mma.m16n8k16: of an accumulator, lane l holds columns
// 2 (l % 4) and 2 (l % 4) + 1 of rows l / 4 (elements 0 and 1) and l / 4 + 8 (elements 2 and 3); two accumulators of
// neighbouring columns are, packed, the left factor of the next product.
#include "common.cuh"

enum { WARPS = 4, THREADS = 32 * WARPS, ROWS = 16 * WARPS };

#ifdef __CUDACC__
// c += a b: (16, 16) times (16, 8).
__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, f16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Four (8, 8) matrices from shared memory; lanes 8 m to 8 m + 7 give the addresses of the rows of matrix m.
__device__ __forceinline__ void load_matrices(u32 (&r)[4], const void *row) {
    u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(u32 (&r)[4], const void *row) {
    u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
#endif

struct alignas(16) Eight {
    u32 words[4];
};

template <typename T>
__device__ __forceinline__ u32 pack(float low, float high) {
    union {
        T halves[2];
        u32 word;
    } both;
    set(both.halves[0], low);
    set(both.halves[1], high);
    return both.word;
}

// A tile in shared memory: rows of D elements, 8 more between them so that the rows of a matrix lie in different banks.
template <int D>
struct Tile {
    static const int STRIDE = D + 8;
};

// `count` rows of `head_dim` elements (a multiple of 8), of which `valid` exist; zeros elsewhere, also up to D.
template <typename T, int D>
__device__ void load_tile(T *tile, const T *from, u32 count, u32 valid, u32 head_dim, u32 width) {
    for (u32 at = threadIdx.x; at < count * (D / 8); at += THREADS) {
        u32 row = at / (D / 8), column = at % (D / 8) * 8;
        Eight eight = {{0, 0, 0, 0}};
        if (row < valid && column < head_dim) eight = *(const Eight *)(from + (u64)row * width + column);
        *(Eight *)(tile + row * Tile<D>::STRIDE + column) = eight;
    }
}

// c (16, N) += a (16, D) b (N, D) transposed, both factors in shared memory.
template <typename T, int D, int N>
__device__ __forceinline__ void multiply_transposed(float (&c)[N / 8][4], const T *a, const T *b) {
    const int stride = Tile<D>::STRIDE;
    u32 lane = threadIdx.x % 32;
#pragma unroll 4
    for (int k = 0; k < D; k += 16) {
        u32 left[4], right[4];
        load_matrices(left, a + lane % 16 * stride + k + lane / 16 * 8);
#pragma unroll
        for (int n = 0; n < N; n += 16) {
            load_matrices(right, b + (n + lane / 16 * 8 + lane % 8) * stride + k + lane / 8 % 2 * 8);
            mma(c[n / 8], left, right[0], right[1], T());
            mma(c[n / 8 + 1], left, right[2], right[3], T());
        }
    }
}

// c (16, D) += a (16, N) b (N, D), the left factor in accumulators, the right one in shared memory.
template <typename T, int D, int N>
__device__ __forceinline__ void multiply(float (&c)[D / 8][4], const float (&a)[N / 8][4], const T *b) {
    const int stride = Tile<D>::STRIDE;
    u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < N; k += 16) {
        const float(&first)[4] = a[k / 8], (&second)[4] = a[k / 8 + 1];
        u32 left[4] = {pack<T>(first[0], first[1]), pack<T>(first[2], first[3]), pack<T>(second[0], second[1]),
                       pack<T>(second[2], second[3])};
#pragma unroll
        for (int n = 0; n < D; n += 16) {
            u32 right[4];
            load_matrices_transposed(right, b + (k + lane / 8 % 2 * 8 + lane % 8) * stride + n + lane / 16 * 8);
            mma(c[n / 8], left, right[0], right[1], T());
            mma(c[n / 8 + 1], left, right[2], right[3], T());
        }
    }
}

template <int N>
__device__ __forceinline__ void clear(float (&c)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) c[n][e] = 0.0f;
}

// What a row sees; `window` counts backwards from the row, itself included, and 0 stands for all.
__device__ __forceinline__ bool sees(u32 row, u32 key, u32 window) { return window == 0 || (key <= row && row - key < window); }

// How `qkv` is laid out, and a block's part of it: `tiles` holds for each block the first row of its sequence, the
// sequence's length, and the first of its own 64 rows within the sequence.
struct Part {
    u32 from, length, first, width, heads, kv_heads, head_dim;
    __device__ Part(const u32 *tiles, u32 heads, u32 kv_heads, u32 head_dim)
        : from(tiles[3 * blockIdx.x]), length(tiles[3 * blockIdx.x + 1]), first(tiles[3 * blockIdx.x + 2]),
          width((heads + 2 * kv_heads) * head_dim), heads(heads), kv_heads(kv_heads), head_dim(head_dim) {}
    // Offsets of a row of the sequence: of its query, key and value, in `qkv`, and in what has one width per query head.
    __device__ u64 query(u32 row, u32 head) const { return (u64)(from + row) * width + head * head_dim; }
    __device__ u64 key(u32 row, u32 kv) const { return query(row, heads + kv); }
    __device__ u64 value(u32 row, u32 kv) const { return query(row, heads + kv_heads + kv); }
    __device__ u64 out(u32 row, u32 head) const { return ((u64)(from + row) * heads + head) * head_dim; }
};

// Writes accumulators (16, D) times a factor for each half of the rows: `row` is this lane's first, the other 8 below.
template <typename T, int D>
__device__ __forceinline__ void write_rows(
    T *to, u64 stride, const float (&c)[D / 8][4], u32 row, u32 rows, u32 head_dim, float factor0, float factor1) {
    u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 at = row + half * 8, column = n * 8 + lane % 4 * 2;
            float factor = half ? factor1 : factor0;
            if (at < rows && column < head_dim)
                *(u32 *)(to + at * stride + column) = pack<T>(c[n][2 * half] * factor, c[n][2 * half + 1] * factor);
        }
}

// Grid (tiles, heads). `sums` (heads, rows) takes each row's log2 of the sum of exp2 of its scaled scores; `scale` has
// log2(e) in it.
template <typename T, int D, int KEYS>
__device__ void flash_forward(
    const T *qkv, T *out, float *sums, const u32 *tiles, u32 rows, u32 heads, u32 kv_heads, u32 head_dim, u32 window, float scale) {
    DYNAMIC_SHARED(shared);
    const int stride = Tile<D>::STRIDE;
    T *q_tile = (T *)shared, *k_tile = q_tile + ROWS * stride, *v_tile = k_tile + KEYS * stride;
    Part part(tiles, heads, kv_heads, head_dim);
    u32 head = blockIdx.y, kv = head / (heads / kv_heads), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 length = part.length, first = part.first, row = first + warp * 16 + lane / 4;
    load_tile<T, D>(q_tile, qkv + part.query(first, head), ROWS, length - first, head_dim, part.width);

    float o[D / 8][4];
    clear(o);
    float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    u32 key_end = window == 0 ? length : min(length, first + ROWS);
    u32 key_begin = window == 0 || first < window ? 0 : (first - window + 1) / KEYS * KEYS;
    for (u32 key0 = key_begin; key0 < key_end; key0 += KEYS) {
        __syncthreads();
        load_tile<T, D>(k_tile, qkv + part.key(key0, kv), KEYS, length - key0, head_dim, part.width);
        load_tile<T, D>(v_tile, qkv + part.value(key0, kv), KEYS, length - key0, head_dim, part.width);
        __syncthreads();
        float s[KEYS / 8][4];
        clear(s);
        multiply_transposed<T, D, KEYS>(s, q_tile + warp * 16 * stride, k_tile);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float high = most[half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    u32 key = key0 + n * 8 + lane % 4 * 2 + e % 2;
                    s[n][e] = key < length && sees(row + half * 8, key, window) ? s[n][e] * scale : -INFINITY;
                    high = fmaxf(high, s[n][e]);
                }
            high = fmaxf(high, __shfl_xor_sync(EVERY_LANE, high, 1));
            high = fmaxf(high, __shfl_xor_sync(EVERY_LANE, high, 2));
            // A row that has seen nothing yet must not subtract infinity from itself.
            float base = high == -INFINITY ? 0.0f : high;
            float factor = exp2f(most[half] - base);
            most[half] = high;
            sum[half] *= factor;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                o[n][2 * half] *= factor;
                o[n][2 * half + 1] *= factor;
            }
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    s[n][e] = exp2f(s[n][e] - base);
                    sum[half] += s[n][e];
                }
        }
        multiply<T, D, KEYS>(o, s, v_tile);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        sum[half] += __shfl_xor_sync(EVERY_LANE, sum[half], 1);
        sum[half] += __shfl_xor_sync(EVERY_LANE, sum[half], 2);
        u32 at = row + half * 8;
        if (lane % 4 == 0 && at < length) sums[(u64)head * rows + part.from + at] = most[half] + log2f(sum[half]);
    }
    write_rows<T, D>(out + part.out(0, head), (u64)heads * head_dim, o, row, length, head_dim, 1.0f / sum[0], 1.0f / sum[1]);
}

// One warp a (row, head): `deltas` (heads, rows) take the sum of the output times its gradient.
template <typename T>
__device__ void flash_deltas(const T *out, const T *g, float *deltas, u32 rows, u32 heads, u32 head_dim) {
    u64 at = grid_index() / 32;
    if (at >= (u64)rows * heads) return;
    float sum = 0.0f;
    for (u32 i = threadIdx.x % 32; i < head_dim; i += 32) sum += wide(out[at * head_dim + i]) * wide(g[at * head_dim + i]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) deltas[at % heads * rows + at / heads] = sum;
}

// Grid (tiles, heads): dq, in the columns of the queries of `d_qkv`. `gradient_scale` is `scale` without log2(e).
template <typename T, int D, int KEYS>
__device__ void flash_queries(
    const T *qkv, const T *g, const float *sums, const float *deltas, T *d_qkv, const u32 *tiles, u32 rows, u32 heads, u32 kv_heads,
    u32 head_dim, u32 window, float scale, float gradient_scale) {
    DYNAMIC_SHARED(shared);
    const int stride = Tile<D>::STRIDE;
    T *q_tile = (T *)shared, *g_tile = q_tile + ROWS * stride, *k_tile = g_tile + ROWS * stride, *v_tile = k_tile + KEYS * stride;
    Part part(tiles, heads, kv_heads, head_dim);
    u32 head = blockIdx.y, kv = head / (heads / kv_heads), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 length = part.length, first = part.first, row = first + warp * 16 + lane / 4;
    load_tile<T, D>(q_tile, qkv + part.query(first, head), ROWS, length - first, head_dim, part.width);
    load_tile<T, D>(g_tile, g + part.out(first, head), ROWS, length - first, head_dim, heads * head_dim);
    float sum[2], delta[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u64 at = (u64)head * rows + part.from + row + half * 8;
        bool exists = row + half * 8 < length;
        sum[half] = exists ? sums[at] : 0.0f;
        delta[half] = exists ? deltas[at] : 0.0f;
    }
    float dq[D / 8][4];
    clear(dq);
    u32 key_end = window == 0 ? length : min(length, first + ROWS);
    u32 key_begin = window == 0 || first < window ? 0 : (first - window + 1) / KEYS * KEYS;
    for (u32 key0 = key_begin; key0 < key_end; key0 += KEYS) {
        __syncthreads();
        load_tile<T, D>(k_tile, qkv + part.key(key0, kv), KEYS, length - key0, head_dim, part.width);
        load_tile<T, D>(v_tile, qkv + part.value(key0, kv), KEYS, length - key0, head_dim, part.width);
        __syncthreads();
        float s[KEYS / 8][4], dp[KEYS / 8][4];
        clear(s);
        clear(dp);
        multiply_transposed<T, D, KEYS>(s, q_tile + warp * 16 * stride, k_tile);
        multiply_transposed<T, D, KEYS>(dp, g_tile + warp * 16 * stride, v_tile);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                u32 key = key0 + n * 8 + lane % 4 * 2 + e % 2, at = row + e / 2 * 8;
                bool seen = at < length && key < length && sees(at, key, window);
                float p = seen ? exp2f(s[n][e] * scale - sum[e / 2]) : 0.0f;
                s[n][e] = p * (dp[n][e] - delta[e / 2]);
            }
        multiply<T, D, KEYS>(dq, s, k_tile);
    }
    write_rows<T, D>(d_qkv + part.query(0, head), part.width, dq, row, length, head_dim, gradient_scale, gradient_scale);
}

// Grid (tiles, kv_heads): dk and dv, as KEYS and VALUES ask, in their columns of `d_qkv`. The block's 64 rows are keys,
// and products are those of the forward transposed: (16 keys, QUERIES).
template <typename T, int D, int QUERIES, bool KEYS, bool VALUES>
__device__ void flash_keys(
    const T *qkv, const T *g, const float *sums, const float *deltas, T *d_qkv, const u32 *tiles, u32 rows, u32 heads, u32 kv_heads,
    u32 head_dim, u32 window, float scale, float gradient_scale) {
    DYNAMIC_SHARED(shared);
    const int stride = Tile<D>::STRIDE;
    T *k_tile = (T *)shared, *v_tile = k_tile + ROWS * stride, *q_tile = v_tile + ROWS * stride, *g_tile = q_tile + QUERIES * stride;
    Part part(tiles, heads, kv_heads, head_dim);
    u32 kv = blockIdx.y, group = heads / kv_heads, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 length = part.length, first = part.first, key = first + warp * 16 + lane / 4;
    load_tile<T, D>(k_tile, qkv + part.key(first, kv), ROWS, length - first, head_dim, part.width);
    load_tile<T, D>(v_tile, qkv + part.value(first, kv), ROWS, length - first, head_dim, part.width);
    float dk[KEYS ? D / 8 : 1][4], dv[VALUES ? D / 8 : 1][4];
    clear(dk);
    clear(dv);
    // The last key of the tile is seen by rows up to `window` - 1 after it.
    u64 last = (u64)first + ROWS - 1 + window;
    u32 row_end = window == 0 || last > length ? length : (u32)last;
    u32 row_begin = window == 0 ? 0 : first / QUERIES * QUERIES;
    for (u32 head = kv * group; head < (kv + 1) * group; head++) {
        for (u32 row0 = row_begin; row0 < row_end; row0 += QUERIES) {
            __syncthreads();
            load_tile<T, D>(q_tile, qkv + part.query(row0, head), QUERIES, length - row0, head_dim, part.width);
            load_tile<T, D>(g_tile, g + part.out(row0, head), QUERIES, length - row0, head_dim, heads * head_dim);
            __syncthreads();
            float p[QUERIES / 8][4];
            clear(p);
            multiply_transposed<T, D, QUERIES>(p, k_tile + warp * 16 * stride, q_tile);
#pragma unroll
            for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    u32 row = row0 + n * 8 + lane % 4 * 2 + e % 2, at = key + e / 2 * 8;
                    bool seen = row < length && at < length && sees(row, at, window);
                    p[n][e] = seen ? exp2f(p[n][e] * scale - sums[(u64)head * rows + part.from + row]) : 0.0f;
                }
            if constexpr (VALUES) multiply<T, D, QUERIES>(dv, p, g_tile);
            if constexpr (KEYS) {
                float dp[QUERIES / 8][4];
                clear(dp);
                multiply_transposed<T, D, QUERIES>(dp, v_tile + warp * 16 * stride, g_tile);
#pragma unroll
                for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        u32 row = row0 + n * 8 + lane % 4 * 2 + e % 2;
                        float delta = row < length ? deltas[(u64)head * rows + part.from + row] : 0.0f;
                        p[n][e] *= dp[n][e] - delta;
                    }
                multiply<T, D, QUERIES>(dk, p, q_tile);
            }
        }
    }
    if constexpr (KEYS)
        write_rows<T, D>(d_qkv + part.key(0, kv), part.width, dk, key, length, head_dim, gradient_scale, gradient_scale);
    if constexpr (VALUES) write_rows<T, D>(d_qkv + part.value(0, kv), part.width, dv, key, length, head_dim, 1.0f, 1.0f);
}

#define BACKWARD_ARGUMENTS(T)                                                                                             \
    const T *qkv, const T *g, const float *sums, const float *deltas, T *d_qkv, const u32 *tiles, u32 rows, u32 heads,    \
        u32 kv_heads, u32 head_dim, u32 window, float scale, float gradient_scale
#define BACKWARD_PASSED \
    qkv, g, sums, deltas, d_qkv, tiles, rows, heads, kv_heads, head_dim, window, scale, gradient_scale

// D: what a head's width is filled up to. Wide heads take smaller tiles, and dk and dv apart: registers are few.
#define WIDTH(T, name, D, SMALL)                                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS) flash_forward_##name##_##D(                                     \
        const T *qkv, T *out, float *sums, const u32 *tiles, u32 rows, u32 heads, u32 kv_heads, u32 head_dim, u32 window, \
        float scale) {                                                                                       \
        flash_forward<T, D, SMALL>(qkv, out, sums, tiles, rows, heads, kv_heads, head_dim, window, scale);       \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS) flash_queries_##name##_##D(BACKWARD_ARGUMENTS(T)) {             \
        flash_queries<T, D, SMALL>(BACKWARD_PASSED);                                                                      \
    }
#define KEYS_AND_VALUES(T, name, D, SMALL)                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) flash_keys_values_##name##_##D(BACKWARD_ARGUMENTS(T)) {         \
        flash_keys<T, D, SMALL, true, true>(BACKWARD_PASSED);                                                             \
    }
#define KEYS_APART(T, name, D, SMALL)                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS) flash_keys_##name##_##D(BACKWARD_ARGUMENTS(T)) {                \
        flash_keys<T, D, SMALL, true, false>(BACKWARD_PASSED);                                                            \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS) flash_values_##name##_##D(BACKWARD_ARGUMENTS(T)) {              \
        flash_keys<T, D, SMALL, false, true>(BACKWARD_PASSED);                                                            \
    }
#define ENTRY(T, name)                                                                                                    \
    WIDTH(T, name, 64, 64)                                                                                                \
    WIDTH(T, name, 128, 64)                                                                                               \
    WIDTH(T, name, 256, 32)                                                                                               \
    KEYS_AND_VALUES(T, name, 64, 64)                                                                                      \
    KEYS_AND_VALUES(T, name, 128, 32)                                                                                     \
    KEYS_APART(T, name, 256, 32)                                                                                          \
    extern "C" __global__ void flash_deltas_##name(                                                                       \
        const T *out, const T *g, float *deltas, u32 rows, u32 heads, u32 head_dim) {                                     \
        flash_deltas<T>(out, g, deltas, rows, heads, head_dim);                                                           \
    }
ENTRY(bf16, bf16)
ENTRY(f16, f16)
