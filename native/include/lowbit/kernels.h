// The kernel contract: one table of function pointers per tier. A null entry falls through to the tier below when the
// tables are merged (dispatch.cpp), so the scalar table has no null. Kernels never allocate, thread or detect.
#pragma once
#include "lowbit/activation.h"
#include "lowbit/cpu.h"
#include "lowbit/tensor.h"

namespace lowbit {

// Compute type of a linear product.
//   int8: activations are quantised per 64 k (see QuantizedRows); codebooks are rounded to int8 (formats.h kinds kGrid and kCodebook with
//         at most 4 bits, plus sym_int8). Other formats: as bf16.
//   fp32: codes are expanded to their exact float values.
//   bf16: the same, and activations are rounded to bf16; a tier with kernels for it rounds what codes mean to bf16 too, where it is not
//         exact (nf3, nf4). fp16 and fp32 weights: as fp32.
enum class Compute : uint8_t { int8 = 0, fp32 = 1, bf16 = 2 };

inline constexpr int kMaxKernelRows = 8;    // rows of one kernel call; linear.cpp loops
inline constexpr int kTileBlockRows = 16;  // rows that stand as tiles together

inline constexpr int kActivationK = 64;  // activations that share a scale

// m rows of activations, padded with zeros to k_padded (a multiple of kActivationK). Symmetric int8, never -128:
//   scale[g] = max|x| / 127 of 64 values, code = round_half_even(x * (127 / max|x|)), all codes zero where max|x| is 0, infinite or
//   NaN and where 127 / max|x| overflows (subnormal activations),
//   sum[a] = sum of the 32 codes of an atom.
// Rows are stored in blocks of kMaxKernelRows, interleaved so that one pointer walks through all rows of a kernel call:
//   codes [block][k_padded/4][width][4] int8, scales [block][k_padded/64][width] fp32, sums [block][k_padded/32][width] int32,
// where width is the block's row count rounded up to 1, 2, 4 or 8 (what the rows beyond hold does not matter). Blocks are 64-byte aligned, and block b
// starts at row 8 * b of a matrix [m][k_padded], so a single row lies there as it is.
// Where the tier has tiles, full blocks of kTileBlockRows rows (as many as m holds) come first, in the same memory, and stand as
//   codes [block][k_padded/64][16 rows][64], scales [block][k_padded/64][16], sums [block][k_padded/32][16].
struct QuantizedRows {
    int8_t* codes;
    float* scales;
    int32_t* sums;
    int64_t k_padded;
    int64_t m;
};

// Whether a product adds up the integers of both atoms that share an activation scale before the scale is applied: where no
// group of weights ends between them.
constexpr bool sums_pairs(const Layout& l) { return l.groups_per_tile == 1 || l.group_size % kActivationK == 0; }

// Rows a block of m (1 ... kMaxKernelRows) rows is stored as.
constexpr int interleave_width(int64_t m) { return m <= 1 ? 1 : m <= 2 ? 2 : m <= 4 ? 4 : 8; }

struct FloatRows {  // fp32 [m][stride], zero from k to k_padded
    const float* data;
    int64_t stride;
    int64_t m;
};

struct HalfRows {  // bf16 [m][stride], zero from k to k_padded
    const uint16_t* data;
    int64_t stride;
    int64_t m;
};

inline constexpr int kKvBlock = 64;  // positions that stand together in a KV cache

// y[row * y_stride + n] for the n of `panels` consecutive panels from `first_panel` (all 16 lanes are written, y has room
// for padded rows), row = 0..m-1, m <= kMaxKernelRows; first_row is a multiple of kMaxKernelRows.
using LinearInt8 = void (*)(const PackedView& w, int64_t first_panel, int64_t panels, const QuantizedRows& x,
                            int64_t first_row, int m, float* y, int64_t y_stride);
using LinearFp32 = void (*)(const PackedView& w, int64_t first_panel, int64_t panels, const FloatRows& x,
                            int64_t first_row, int m, float* y, int64_t y_stride);
// fp32 sums of products in pairs, in an order that depends on nothing but k; subnormal weights, activations and sums count as zero.
using LinearBf16 = void (*)(const PackedView& w, int64_t first_panel, int64_t panels, const HalfRows& x,
                            int64_t first_row, int m, float* y, int64_t y_stride);

// The same for any multiple of kMaxKernelRows rows (LinearKernels::tiles: of kTileBlockRows), equal to the last bit; `scratch` has
// kManyScratch bytes, 64-byte aligned.
inline constexpr int kManyGroup = 256;  // largest group_size but per row
inline constexpr int64_t kManyScaleBytes = 2 * 3 * kPanelRows * 16 * 4, kManySumBytes = 4096,
                         kManyScratch = kManyScaleBytes + 3 * kPanelRows * kManyGroup * 4 + kManySumBytes;
using LinearInt8Many = void (*)(const PackedView& w, int64_t first_panel, int64_t panels, const QuantizedRows& x,
                                int64_t first_row, int64_t m, float* y, int64_t y_stride, uint8_t* scratch);
using LinearFp32Many = void (*)(const PackedView& w, int64_t first_panel, int64_t panels, const FloatRows& x,
                                int64_t first_row, int64_t m, float* y, int64_t y_stride, uint8_t* scratch);
using LinearBf16Many = void (*)(const PackedView& w, int64_t first_panel, int64_t panels, const HalfRows& x,
                                int64_t first_row, int64_t m, float* y, int64_t y_stride, uint8_t* scratch);

struct LinearKernels {
    LinearInt8 int8[16];  // by FormatId; null in every tier = the format has no int8 compute
    LinearFp32 fp32[16];
    LinearBf16 bf16[16];  // all null = fp32 kernels multiply the rounded activations
    LinearInt8Many int8_many[16];  // null in every tier = rows go through the kernels above
    LinearFp32Many fp32_many[16];
    LinearBf16Many bf16_many[16];
    bool tiles;  // int8_many takes its rows as tiles, a multiple of kTileBlockRows of them
    // Quantises k floats of one row as QuantizedRows describes, padding with zeros up to k_padded (a multiple of 64): four codes
    // every 4 * width bytes (width kTileBlockRows, in tiers with tiles: 64 every 64 * width), a scale and a sum every width
    // elements.
    void (*quantize_row)(const float* x, int64_t k, int64_t k_padded, int width, int8_t* codes, float* scales, int32_t* sums);
};

// Element-wise and attention kernels on fp32 rows. n is any positive length; pointers need no alignment; NaN in gives NaN out.
// Tiers differ from scalar in the order of sums and in e^x (relative error at most 3e-7 for -87.3 <= x <= 88.3; beyond, results
// may already be the smallest normal number or infinity).
struct VectorKernels {
    // y = x / sqrt(mean(x^2) + eps) * (weight + weight_offset); y may be x
    void (*rms_norm)(const float* x, const float* weight, float weight_offset, float eps, int64_t n, float* y);
    // y = (x - mean) / sqrt(var + eps) * (weight + weight_offset) + bias; weight and bias may be null (then 1 and 0); y may be x
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float weight_offset, float eps, int64_t n,
                       float* y);
    void (*add)(float* y, const float* x, float scale, int64_t n);  // y += scale * x
    float (*max)(const float* x, int64_t n);                        // largest element, NaN elements may be passed over
    float (*exp_sum)(float* x, float shift, int64_t n);             // x = e^(x - shift), returns the sum of the results
    void (*to_fp16)(const float* x, uint16_t* y, int64_t n);        // round to nearest even, overflow to infinity
    void (*to_bf16)(const float* x, uint16_t* y, int64_t n);        // round to nearest even
    void (*activate)(Activation f, const float* x, int64_t n, float* y);  // y = f(x); y may be x
    // y[i] = f(gate[i]) * up[i], i < n; gate_up holds 16 of gate, 16 of up, 16 of gate, ... (whole panels, see _spec.py)
    void (*activate_gated)(Activation f, const float* gate_up, int64_t n, float* y);
    // Attention of `rows` queries over one block of a KV cache of floats (kv_cache.h; of codes: code_attention.h), of which `count`
    // <= kKvBlock positions count.
    // scores[r][t] = dot(q[r], key t), t < count; q [rows][dim], keys [dim][kKvBlock] of dtype, scores [rows][kKvBlock], where
    // columns from count on are scratch.
    void (*attention_scores)(const float* q, int64_t rows, const void* keys, DType dtype, int64_t count, int64_t dim,
                             float* scores);
    // out[r][d] += sum over t < count of weights[r][t] * value t [d]; weights [rows][kKvBlock], values [kKvBlock][dim] of dtype,
    // out [rows][dim]; dim is a multiple of 16.
    void (*attention_values)(const float* weights, int64_t rows, const void* values, DType dtype, int64_t count, int64_t dim,
                             float* out);
};

inline constexpr int kQueryLanes = 32;

// Attention of up to kQueryLanes queries whose keys are at hand as rows: queries stand beside each other in lanes, keys and values are
// read where they are, and a softmax needs no sum across lanes. What follows the last query in the lanes is scratch, but finite.
struct QueryLaneKernels {
    // lanes[d][r] = (x[r][d] + bias[d]) * scale, r < count, zero beyond; bias may be null (0)
    void (*from_rows)(const float* x, int64_t stride, int64_t count, int64_t dim, const float* bias, float scale, float* lanes);
    // scores[t][r] = dot(q[.][r], key t), t < count; keys [count][stride]
    void (*scores)(const float* q, const float* keys, int64_t stride, int64_t count, int64_t dim, float* scores);
    // Per lane, over t < count: top = max(largest, scores), shrink = e^(largest - top), scores = e^(scores - top),
    // sums = sums * shrink + sum of the new scores, largest = top.
    void (*softmax)(float* scores, int64_t count, float* largest, float* sums, float* shrink);
    // out[d][r] = out[d][r] * shrink[r] + sum over t < count of weights[t][r] * values[t][d]
    void (*values)(const float* weights, const float* values, int64_t stride, int64_t count, int64_t dim, const float* shrink,
                   float* out);
    // y[r][d] = lanes[d][r] / sums[r] + bias[d], r < count; bias may be null
    void (*to_rows)(const float* lanes, const float* sums, int64_t count, int64_t dim, const float* bias, float* y, int64_t stride);
};

struct CodeTileKernels;

struct KernelTable {
    Tier tier;
    LinearKernels linear;
    VectorKernels vector;
    QueryLaneKernels query_lanes;
    const CodeTileKernels* code_tiles = nullptr;  // null where the tier has no tiles (code_tiles.h)
};

// Replaces the entries that `u` has kernels for.
void overlay(LinearKernels& l, const LinearKernels& u);
void overlay(VectorKernels& v, const VectorKernels& u);

// Merged tables: every entry of `tier` that is null comes from the tier below. `tier` must be available.
const KernelTable& kernel_table(Tier tier);

// Per tier: the kernels it adds, null where it has none (native/kernels/<tier>/linear.cpp and vector.cpp). These functions are
// compiled with the tier's instruction set: call them only when the tier is available.
namespace scalar { LinearKernels linear_kernels(); VectorKernels vector_kernels(); QueryLaneKernels query_lane_kernels(); }
namespace avx2 {
LinearKernels linear_kernels();
LinearKernels linear_kernels_without_vnni();  // what linear_kernels() gives on a CPU that lacks AVX-VNNI; for tests
VectorKernels vector_kernels();
QueryLaneKernels query_lane_kernels();
}
namespace avx512 {
LinearKernels linear_kernels();
LinearKernels bf16_kernels();  // only where the CPU has AVX512_BF16
VectorKernels vector_kernels();
QueryLaneKernels query_lane_kernels();
}
namespace amx {
LinearKernels linear_kernels();
LinearKernels bf16_kernels();  // only where the CPU has AMX-BF16
}
namespace amx_model { LinearKernels linear_kernels(); LinearKernels bf16_kernels(); }  // on CPUs without tiles, slowly; for tests

}  // namespace lowbit
