// Products of few rows with a large weight, y = x Wᵀ, bound by reading the weight (NVIDIA Hopper).
//
// A program (CTA) makes BN outputs of all rows; SPLIT of them, a cluster, share the inputs, so that about as many
// programs read as the device has multiprocessors, each the same number of bytes. One thread brings tiles of 64 inputs
// by bulk copies (TMA) into a ring of STAGES places; one warpgroup for each 64 outputs multiplies them (wgmma), the
// weight's rows on the instruction's side that is always 64, so that the other is as long as there are rows. What the
// programs of a cluster have summed they read from one another, in order of their rank.
//
// The first tiles of the weight are asked for while the kernel before still runs; x and the residual are not touched
// before it has ended (programmatic dependent launch).
//
// Instructions after NVIDIA's PTX ISA, "Asynchronous Warpgroup Level Matrix" and "cp.async.bulk.tensor".
//
// Macros: ROWS (a multiple of 32, to 256), BN, SPLIT, STAGES; GATED: the outputs are silu(gate) * up of a weight that
// holds the gate's rows, then up's; ADD: to the residual, which lies where the outputs go. MULTIPLY(d, a, b) is wgmma
// of ROWS / CALLS columns.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short bf16;

struct alignas(64) TensorMap {
    u64 opaque[16];
};

constexpr int BK = 64;  // inputs of a tile: 128 bytes, what the copies' swizzle spans
constexpr int CONSUMERS = (BN + 63) / 64 * 128;
constexpr bool MOVES_REGISTERS = CALLS > 1;  // a thread of four warpgroups has 128, too few for the sums of so many rows
constexpr int THREADS = CONSUMERS + (MOVES_REGISTERS ? 128 : 32);  // one of the last asks for copies
constexpr u32 X_TILE = ROWS * BK * 2;
constexpr u32 W_TILE = BN * BK * 2;
constexpr int OUT_N = GATED ? BN / 2 : BN;         // outputs of a cluster
constexpr int SHARE = OUT_N / SPLIT;               // outputs that a program finishes
constexpr int FOURS = SHARE / 4;                   // of a row
constexpr int PASSES = (ROWS * FOURS + CONSUMERS - 1) / CONSUMERS;
constexpr int TOGETHER = 4;                        // of which a thread reads the sums at once
constexpr int PITCH = (BN + 31) / 32 * 32 + 4;     // floats; what a warp stores at once lies in different banks

static_assert(SHARE % 4 == 0 && OUT_N % 8 == 0 && BN <= 256 && ROWS % 32 == 0 && ROWS <= 256, "tiles");
static_assert(ROWS * PITCH * 4 <= STAGES * (W_TILE + X_TILE), "the ring holds the sums afterwards");

__device__ __forceinline__ u32 shared_address(const void *pointer) {
    return (u32)__cvta_generic_to_shared(pointer);
}

__device__ __forceinline__ void barrier_init(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count));
}

__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "AGAIN:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
        "@p bra DONE;\n"
        "bra AGAIN;\n"
        "DONE:\n"
        "}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

__device__ __forceinline__ void copy_tile(u32 to, const TensorMap *map, int column, int row, u32 barrier, u64 keep) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(map), "r"(column), "r"(row), "r"(barrier), "l"(keep)
        : "memory");
}

__device__ __forceinline__ void wait_for_kernel_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// A tile of 64 inputs a row, swizzled over 128 bytes: groups of eight rows lie 1024 bytes apart.
__device__ __forceinline__ u64 descriptor(u32 address) {
    return ((u64)1 << 62) | ((u64)64 << 32) | ((u64)1 << 16) | (u64)((address & 0x3FFFF) >> 4);
}

__device__ __forceinline__ void store_one(u32 to, float value) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
}

__device__ __forceinline__ float rounded(float value) {
    bf16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return __uint_as_float((u32)bits << 16);
}

__device__ __forceinline__ u32 packed(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

__device__ __forceinline__ float4 unpacked(uint2 four) {
    return make_float4(__uint_as_float(four.x << 16), __uint_as_float(four.x & 0xFFFF0000u),
                       __uint_as_float(four.y << 16), __uint_as_float(four.y & 0xFFFF0000u));
}

__device__ __forceinline__ float4 sum_of_cluster(u32 address) {
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int rank = 0; rank < SPLIT; rank++) {
        u32 theirs = address;
        float4 part;
        if (SPLIT > 1) asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(theirs) : "r"(address), "r"(rank));
        asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(part.x), "=f"(part.y), "=f"(part.z), "=f"(part.w)
                     : "r"(theirs));
        sum.x += part.x;
        sum.y += part.y;
        sum.z += part.z;
        sum.w += part.w;
    }
    return sum;
}

__device__ __forceinline__ float gated(float gate, float up) {
    gate = rounded(gate);
    return rounded(gate / (1.f + __expf(-gate))) * rounded(up);
}

__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void consumers_sync() { asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory"); }

// The copies of one program: `count` tiles of the weight and of x, from input `from` on.
__device__ __forceinline__ void bring_tiles(const TensorMap *weight_map, const TensorMap *x_map, u32 ring, u32 full,
                                            u32 empty, int first, int outputs, int from, int count, int rows) {
    const u64 stream = 0x12F0000000000000ull, stay = 0x14F0000000000000ull;  // as CUTLASS: evict first, evict last
    const int ahead = count < STAGES ? count : STAGES;
    auto bring_weight = [&](int i) {
        const u32 place = i % STAGES, barrier = full + 8 * place, to = ring + place * (W_TILE + X_TILE);
        barrier_expect(barrier, W_TILE + rows * BK * 2);
        copy_tile(to, weight_map, from + i * BK, first, barrier, stream);
        if (GATED) copy_tile(to + W_TILE / 2, weight_map, from + i * BK, outputs + first, barrier, stream);
    };
    auto bring_x = [&](int i) {
        const u32 place = i % STAGES, to = ring + place * (W_TILE + X_TILE) + W_TILE;
        copy_tile(to, x_map, from + i * BK, 0, full + 8 * place, stay);
    };
    for (int i = 0; i < ahead; i++) bring_weight(i);
    wait_for_kernel_before();
    for (int i = 0; i < ahead; i++) bring_x(i);
    for (int i = STAGES; i < count; i++) {
        barrier_wait(empty + 8 * (i % STAGES), (i / STAGES - 1) & 1);
        bring_weight(i);
        bring_x(i);
    }
}

// Sums of this warpgroup's 64 outputs, those behind BN meaningless: a thread has one output of each eight, and the one
// eight on, for two of each eight rows.
struct Sums {
    float of[CALLS][ROWS / 2 / CALLS];

    __device__ __forceinline__ void multiply_tiles(u32 ring, u32 full, u32 empty, int count) {
        const u32 own = threadIdx.x / 128 * 64 * BK * 2;
        for (int i = 0; i < count; i++) {
            const u32 place = i % STAGES, at = ring + place * (W_TILE + X_TILE);
            barrier_wait(full + 8 * place, (i / STAGES) & 1);
            const u64 w = descriptor(at + own), x = descriptor(at + W_TILE);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int k = 0; k < BK / 16; k++)
#pragma unroll
                for (int call = 0; call < CALLS; call++)
                    MULTIPLY(of[call], w + 2 * k, x + 2 * k + call * (X_TILE / CALLS / 16));
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");  // the tile before has been read
            if (i > 0 && threadIdx.x % 32 == 0) barrier_arrive(empty + 8 * ((i - 1) % STAGES));
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
        for (int call = 0; call < CALLS; call++)
#pragma unroll
            for (int i = 0; i < ROWS / 2 / CALLS; i++) asm volatile("" : "+f"(of[call][i])::"memory");
    }

    __device__ __forceinline__ void store(u32 sums, int rows) const {
        const int output = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, row = threadIdx.x % 4 * 2;
        const u32 to = sums + (row * PITCH + output) * 4;
#pragma unroll
        for (int i = 0; i < ROWS / 8; i++) {
            if (i * 8 >= rows) break;
            const float *four = &of[i / (ROWS / 8 / CALLS)][i % (ROWS / 8 / CALLS) * 4];
            const u32 at = to + i * 8 * PITCH * 4;
            if (output < BN) store_one(at, four[0]), store_one(at + PITCH * 4, four[1]);
            if (output + 8 < BN) store_one(at + 32, four[2]), store_one(at + PITCH * 4 + 32, four[3]);
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    product(const __grid_constant__ TensorMap weight_map, const __grid_constant__ TensorMap x_map, bf16 *out, int rows,
            int outputs, int inputs) {
    extern __shared__ unsigned char memory[];
    __shared__ alignas(8) u64 barriers[2 * STAGES];
    const u32 ring = (shared_address(memory) + 1023) & ~1023u;
    const u32 full = shared_address(barriers), empty = full + 8 * STAGES;
    const int thread = threadIdx.x, rank = SPLIT > 1 ? blockIdx.x % SPLIT : 0, first = blockIdx.x / SPLIT * OUT_N;
    const int tiles = (inputs + BK - 1) / BK, from = tiles * rank / SPLIT;
    const int count = tiles * (rank + 1) / SPLIT - from;

    if (thread == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, CONSUMERS / 32);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    asm volatile("griddepcontrol.launch_dependents;");

    if (thread >= CONSUMERS) {
        if (MOVES_REGISTERS) asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        if (thread == CONSUMERS)
            bring_tiles(&weight_map, &x_map, ring, full, empty, first, outputs, from * BK, count, rows);
        __syncwarp();
        if (SPLIT > 1) cluster_sync(), cluster_sync();
        return;
    }
    if (MOVES_REGISTERS) asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");

    wait_for_kernel_before();
    const int begin = first + rank * SHARE, num_fours = rows * FOURS;
    auto place_of = [&](int pass) {  // four outputs of a row that this thread finishes, or none
        const int i = pass * CONSUMERS + thread, row = i / FOURS, column = i % FOURS * 4;
        const bool some = i < num_fours && begin + column < outputs;
        return some ? (uint2 *)(out + (u64)row * outputs + begin + column) : nullptr;
    };
    uint2 residual[PASSES];
    auto ask_for_residual = [&] {
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++)
            if (const uint2 *place = place_of(pass)) residual[pass] = *place;
    };

    Sums sums = {};
    if (ADD && ROWS <= 128) ask_for_residual();  // now, so that nothing waits for it; of more rows it finds no registers
    sums.multiply_tiles(ring, full, empty, count);
    consumers_sync();  // everybody has multiplied: the ring is free
    sums.store(ring, rows);
    if (ADD && ROWS > 128) ask_for_residual();
    if (SPLIT > 1) cluster_sync();
    else consumers_sync();

#pragma unroll
    for (int pass = 0; pass < PASSES; pass += TOGETHER) {
        if (pass * CONSUMERS >= num_fours) break;
        float4 values[TOGETHER], ups[TOGETHER];
#pragma unroll
        for (int each = 0; each < TOGETHER; each++) {  // though some threads finish none, so that loads overlap
            if ((pass + each) * CONSUMERS >= num_fours) break;
            const int i = min((pass + each) * CONSUMERS + thread, ROWS * FOURS - 1);
            const u32 at = ring + (i / FOURS * PITCH + rank * SHARE + i % FOURS * 4) * 4;
            values[each] = sum_of_cluster(at);
            if (GATED) ups[each] = sum_of_cluster(at + OUT_N * 4);
        }
#pragma unroll
        for (int each = 0; each < TOGETHER; each++) {
            uint2 *place = pass + each < PASSES ? place_of(pass + each) : nullptr;
            if (!place) continue;
            float4 value = values[each];
            if (GATED) {
                const float4 up = ups[each];
                value = make_float4(gated(value.x, up.x), gated(value.y, up.y), gated(value.z, up.z), gated(value.w, up.w));
            }
            if (ADD) {
                const float4 more = unpacked(residual[(pass + each) % PASSES]);
                value = make_float4(value.x + more.x, value.y + more.y, value.z + more.z, value.w + more.w);
            }
            *place = make_uint2(packed(value.x, value.y), packed(value.z, value.w));
        }
    }
    if (SPLIT > 1) cluster_sync();  // nobody leaves while its sums are read
}
