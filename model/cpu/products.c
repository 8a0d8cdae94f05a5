/* Matrix products of bfloat16 weights on processors that have no instructions for them: y = x Wᵀ + b, plus a residual;
 * or silu(gate(x)) * up(x). Weights stay bfloat16 in memory and are widened where they are used; sums are float32.
 *
 * The order of the loops is that of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication": a tile
 * of TILE rows by WIDTH outputs lives in registers while DEPTH inputs pass, of which the weights' part stays in the
 * second-level cache for BLOCK rows. A row's sums do not depend on the other rows.
 */
#include <omp.h>

#include "vectors.inc"

#define TILE 6    /* rows: 12 of AVX2's 16 registers are sums */
#define WIDTH 16  /* outputs of a panel */
#define DEPTH 256 /* inputs that a panel is widened for at a time */
#define BLOCK 192 /* rows, a multiple of TILE */
#define LINE 32   /* elements of a cache line */
#define GROUP 4   /* panels that are worked on together, so that rows are read less often; even, for pairs */

typedef uint32_t uvec8 __attribute__((vector_size(32), aligned(4)));
typedef uint16_t hvec8 __attribute__((vector_size(16), aligned(2)));

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE vec8 widened(const uint16_t *x) {
    return (vec8)(__builtin_convertvector(*(const hvec8 *)x, uvec8) << 16);
}

static inline vec8 splat(float x) { return x - (vec8){0}; }

static inline hvec8 bf16_of(vec8 x) { /* to nearest, ties to even; what is no number stays none */
    uvec8 bits = (uvec8)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    uvec8 none = (uvec8)((bits & 0x7fffffff) > 0x7f800000);
    return __builtin_convertvector((rounded & ~none) | ((bits >> 16 | 0x40) & none), hvec8);
}

/* Adds to sums [rows, WIDTH] the products of x [depth, TILE] with a panel [depth, WIDTH], which is float32 or not. */
INLINE void tile_of(int rows, int wide, const float *x, const void *panel, int64_t depth, float *sums) {
    vec8 sum[TILE][2];
    for (int row = 0; row < rows; row++)
        for (int half = 0; half < 2; half++) sum[row][half] = *(const vec8 *)(sums + row * WIDTH + half * 8);
    for (int64_t k = 0; k < depth; k++) {
        vec8 first, second;
        if (wide) {
            const float *weights = (const float *)panel + k * WIDTH;
            first = *(const vec8 *)weights, second = *(const vec8 *)(weights + 8);
        } else {
            const uint16_t *weights = (const uint16_t *)panel + k * WIDTH;
            first = widened(weights), second = widened(weights + 8);
        }
        for (int row = 0; row < rows; row++) {
            float factor = x[k * TILE + row];
            sum[row][0] += first * factor, sum[row][1] += second * factor;
        }
    }
    for (int row = 0; row < rows; row++)
        for (int half = 0; half < 2; half++) *(vec8 *)(sums + row * WIDTH + half * 8) = sum[row][half];
}

INLINE void tile(int64_t rows, int wide, const float *x, const void *panel, int64_t depth, float *sums) {
    switch (rows) {
        case 1: tile_of(1, wide, x, panel, depth, sums); break;
        case 2: tile_of(2, wide, x, panel, depth, sums); break;
        case 3: tile_of(3, wide, x, panel, depth, sums); break;
        case 4: tile_of(4, wide, x, panel, depth, sums); break;
        case 5: tile_of(5, wide, x, panel, depth, sums); break;
        default: tile_of(6, wide, x, panel, depth, sums);
    }
}

static void wide_tile(int64_t rows, const float *x, const void *panel, int64_t depth, float *sums) {
    tile(rows, 1, x, panel, depth, sums);
}

static void narrow_tile(int64_t rows, const float *x, const void *panel, int64_t depth, float *sums) {
    tile(rows, 0, x, panel, depth, sums);
}

/* Rows of one tile as float32 [inputs, TILE]; what is missing of the last tile is not touched. */
static void widen_tile(const uint16_t *x, int64_t rows, int64_t inputs, float *to) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t k = 0; k < inputs; k++) to[k * TILE + row] = float_of_bf16(x[row * inputs + k]);
}

/* Asks for the part of a panel that comes next, a share of it with each tile, while this tile is worked on. */
static void fetch(const uint16_t *next, int64_t share, int64_t shares) {
    const int64_t lines = DEPTH * WIDTH / LINE;
    for (int64_t i = share * lines / shares; i < (share + 1) * lines / shares; i++)
        __builtin_prefetch(next + i * LINE, 0, 2);
}

/* The products of some rows with `count` panels [inputs, WIDTH] into sums [count, rows, WIDTH]. */
static void multiply(const float *x, int64_t rows, int64_t inputs, const uint16_t *panels, int count, float *sums) {
    float wide[DEPTH * WIDTH] __attribute__((aligned(64)));
    memset(sums, 0, sizeof(float) * count * rows * WIDTH);
    for (int64_t start = 0; start < inputs; start += DEPTH) {
        int64_t depth = least(DEPTH, inputs - start), later = start + DEPTH;
        for (int index = 0; index < count; index++) {
            const uint16_t *panel = panels + (index * inputs + start) * WIDTH, *next = panels + later * WIDTH;
            if (index + 1 < count) next = panel + inputs * WIDTH;
            else if (later >= inputs) next = panels + count * inputs * WIDTH; /* of the next group */
            float *own = sums + index * rows * WIDTH;
            if (rows <= TILE) {
                narrow_tile(rows, x + start * TILE, panel, depth, own);
                continue;
            }
            for (int64_t i = 0; i < depth * WIDTH; i += 8) *(vec8 *)(wide + i) = widened(panel + i);
            for (int64_t row = 0; row < rows; row += TILE) {
                fetch(next, row / TILE, (rows + TILE - 1) / TILE);
                wide_tile(least(TILE, rows - row), x + row * inputs + start * TILE, wide, depth, own + row * WIDTH);
            }
        }
    }
}

DEFINE_MATH(where, power, vec8, ivec8)

/* e^x, between e^-87 and e^87. */
static inline vec8 exp_of(vec8 x) {
    return power(where(x < -87.0f, splat(-87.0f), where(x > 87.0f, splat(87.0f), x)));
}

struct product {
    int64_t rows, inputs, outputs;
    int32_t gated, threads;
    const uint16_t *x;        /* [rows, inputs] */
    const uint16_t *panels;   /* [panels, inputs, WIDTH]; gated: one of gate's before each one of up's */
    const uint16_t *bias;     /* [outputs], gated: gate's, then up's; or null */
    const uint16_t *residual; /* [rows, outputs], or null */
    uint16_t *y;              /* [rows, outputs] */
    float *scratch;           /* [rows filled up to TILE * inputs + threads * GROUP * BLOCK * WIDTH] */
};

/* Up to eight numbers as float32, zeros behind them. */
static inline vec8 some(const uint16_t *x, int64_t count) {
    if (count >= 8) return widened(x);
    uint16_t filled[8] = {0};
    memcpy(filled, x, count * sizeof *x);
    return widened(filled);
}

/* What the sums [count, rows, WIDTH] of a group's panels come to, for the outputs from `first` on. */
static void finish(const struct product *p, const float *sums, int count, int64_t row, int64_t rows, int64_t first) {
    for (int index = 0; index < count; index += p->gated ? 2 : 1, first += WIDTH)
        for (int64_t i = 0; i < rows; i++)
            for (int64_t at = first; at < least(first + WIDTH, p->outputs); at += 8) {
                const float *own = sums + (index * rows + i) * WIDTH + (at - first);
                int64_t width = least(8, p->outputs - at), place = (row + i) * p->outputs + at;
                vec8 value = *(const vec8 *)own;
                if (p->bias) value += some(p->bias + at, width);
                if (p->gated) {
                    vec8 up = *(const vec8 *)(own + rows * WIDTH);
                    if (p->bias) up += some(p->bias + p->outputs + at, width);
                    value = value / (1.0f + exp_of(-value)) * up;
                }
                if (p->residual) value += some(p->residual + place, width);
                hvec8 rounded = bf16_of(value);
                memcpy(p->y + place, &rounded, width * sizeof *p->y);
            }
}

void product_bfloat16(const struct product *p) {
    int64_t num_tiles = (p->rows + TILE - 1) / TILE, num_blocks = (p->rows + BLOCK - 1) / BLOCK;
    int64_t block_rows = num_tiles ? (num_tiles + num_blocks - 1) / num_blocks * TILE : 0; /* at most BLOCK */
    int step = p->gated ? 2 : 1, group = p->rows > TILE ? GROUP : 2; /* panels for WIDTH outputs, and together */
    int64_t num_panels = (p->outputs + WIDTH - 1) / WIDTH * step, num_groups = (num_panels + group - 1) / group;
#pragma omp parallel num_threads(p->threads) if (p->threads > 1)
    {
        float *sums = p->scratch + num_tiles * TILE * p->inputs;
        sums += (int64_t)omp_get_thread_num() * GROUP * BLOCK * WIDTH;
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < num_tiles; tile++)
            widen_tile(p->x + tile * TILE * p->inputs, least(TILE, p->rows - tile * TILE), p->inputs,
                       p->scratch + tile * TILE * p->inputs);
#pragma omp for collapse(2) schedule(static)
        for (int64_t block = 0; block < num_blocks; block++)
            for (int64_t index = 0; index < num_groups; index++) {
                int64_t row = block * block_rows, rows = least(block_rows, p->rows - row), first = index * group;
                int count = (int)least(group, num_panels - first);
                multiply(p->scratch + row * p->inputs, rows, p->inputs, p->panels + first * p->inputs * WIDTH, count,
                         sums);
                finish(p, sums, count, row, rows, first / step * WIDTH);
            }
    }
}
