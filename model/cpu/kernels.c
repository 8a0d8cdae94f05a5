/* What a CPU spends its time on between the matrix products of a decoder: RMS norms, and attention over the paged
 * cache together with what precedes it (per-head norms, rotation, writing keys and values).
 *
 * The bodies are in kernels.inc, which is included once for each element type. Sums are float32 throughout.
 * Vectors are GCC's and Clang's portable ones, of 16 floats, which a compiler splits where registers are shorter.
 * OpenMP's symbols are left undefined: they resolve to the runtime that torch has loaded, so that both use one pool
 * of threads.
 */
#include <omp.h>
#include <stdlib.h>

#include "vectors.inc"

#define LANES 16    /* floats of a vector, and keys that are scored together */
#define MAX_DIM 256 /* of a head, rounded up to LANES */
#define MAX_ROWS 32 /* queries (tokens * grouped heads) that share a pass over the keys */
#define FEW_ROWS 4  /* up to so many, keys are not worth transposing */
#define MASKED -1e30f

typedef float vec __attribute__((vector_size(64), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(64), aligned(4)));
typedef uint32_t uvec __attribute__((vector_size(64), aligned(4)));
typedef float vec4 __attribute__((vector_size(16), aligned(4)));
typedef uint16_t hvec __attribute__((vector_size(32), aligned(2)));

/* One layer's attention on one rank; fixed after loading. */
struct layer {
    int32_t heads, kv_heads, dim, rotary_dim, interleaved, window, block_size, padding; /* window 0: none */
    float eps, scale;
    void *keys, *values;           /* [blocks, block_size, kv_heads, dim] */
    const void *q_norm, *k_norm;   /* [dim], or null */
};

/* One step, the same for all layers. */
struct step {
    int32_t num_tokens, num_rows, table_width, threads;
    const int64_t *cache_slots;   /* [tokens] */
    const int32_t *query_starts;  /* [rows + 1] */
    const int32_t *seq_lens;      /* [rows] */
    const int32_t *block_table;   /* [rows, table_width] */
    const float *cos, *sin;       /* [tokens, rotary_dim / 2] */
};

/* Queries of one row that attend together: tokens `first` to `first + count` of the step. */
struct tile {
    int32_t row, first, count;
};

static inline int min_int(int a, int b) { return a < b ? a : b; }
static inline int max_int(int a, int b) { return a > b ? a : b; }
static inline int padded(int dim) { return (dim + LANES - 1) / LANES * LANES; }

static inline vec splat(float x) { return x - (vec){0}; }

/* The first or the second half of a vector. */
static inline vec8 half8(vec x, int second) {
    vec8 half;
    memcpy(&half, (const char *)&x + 32 * second, sizeof half);
    return half;
}

static inline vec4 half4(vec8 x, int second) {
    vec4 half;
    memcpy(&half, (const char *)&x + 16 * second, sizeof half);
    return half;
}

static inline float sum_of(vec x) {
    vec8 y = half8(x, 0) + half8(x, 1);
    vec4 z = half4(y, 0) + half4(y, 1);
    return (z[0] + z[2]) + (z[1] + z[3]);
}

DEFINE_MATH(where, power, vec, ivec)

static inline float larger(float x, float y) { return x > y ? x : y; }

static inline float max_of(vec x) {
    vec8 a = half8(x, 0), b = half8(x, 1);
    ivec8 first = a > b;
    vec8 y = (vec8)(((ivec8)a & first) | ((ivec8)b & ~first));
    return larger(larger(larger(y[0], y[1]), larger(y[2], y[3])), larger(larger(y[4], y[5]), larger(y[6], y[7])));
}

/* e^x for x <= 0, exact to about 1e-7; 0 for what is masked. */
static inline vec exp_of(vec x) {
    ivec keep = x > splat(MASKED / 2);
    return (vec)((ivec)power(where(x < splat(-87.0f), splat(-87.0f), x)) & keep);
}

static inline uint16_t bf16_of_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline vec load_bf16(const uint16_t *x) {
    return (vec)(__builtin_convertvector(*(const hvec *)x, uvec) << 16);
}

static inline void store_bf16(uint16_t *to, vec x) {
    uvec bits = (uvec)x;
    *(hvec *)to = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, hvec);
}

static const ivec LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* What the queries of a tile have gathered so far, for the heads that share one key/value head. */
struct state {
    int rows;
    const float *query[MAX_ROWS]; /* [padded dim] */
    float most[MAX_ROWS];         /* the largest score */
    float total[MAX_ROWS];        /* the sum of weights */
    float *sum;                   /* [rows, padded dim] the weighted sum of values */
};

/* The state of a tile's queries before any key. */
static void begin(struct state *s, const struct layer *layer, const struct tile *tile, int kv_head,
                  const float *queries) {
    int group = layer->heads / layer->kv_heads, wide = padded(layer->dim);
    s->rows = tile->count * group;
    for (int row = 0; row < s->rows; row++) {
        int64_t head = (int64_t)(tile->first + row / group) * layer->heads + kv_head * group + row % group;
        s->query[row] = queries + head * wide;
        s->most[row] = MASKED;
        s->total[row] = 0;
    }
    memset(s->sum, 0, sizeof(float) * s->rows * wide);
}

/* The rows' tokens, cut into tiles; returns how many. */
static int cut_tiles(const struct step *step, int tokens_per_tile, struct tile *tiles) {
    int count = 0;
    for (int row = 0; row < step->num_rows; row++)
        for (int first = step->query_starts[row]; first < step->query_starts[row + 1]; first += tokens_per_tile)
            tiles[count++] = (struct tile){row, first, min_int(tokens_per_tile, step->query_starts[row + 1] - first)};
    return count;
}

#define ELEMENT float
#define NAME(x) x##_float32
#define LOAD(p) (*(const vec *)(p))
#define STORE(p, x) (*(vec *)(p) = (x))
#define LOAD1(x) (x)
#define STORE1(x) (x)
#include "kernels.inc"
#undef ELEMENT
#undef NAME
#undef LOAD
#undef STORE
#undef LOAD1
#undef STORE1

#define ELEMENT uint16_t
#define NAME(x) x##_bfloat16
#define LOAD(p) load_bf16(p)
#define STORE(p, x) store_bf16(p, x)
#define LOAD1(x) float_of_bf16(x)
#define STORE1(x) bf16_of_float(x)
#include "kernels.inc"
