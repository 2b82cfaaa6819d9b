// The kernel contract: one table of function pointers per tier. A null entry falls through to the tier below when the
// tables are merged (dispatch.cpp), so the scalar table has no null. Kernels never allocate, thread or detect.
#pragma once
#include "lowbit/cpu.h"
#include "lowbit/tensor.h"

namespace lowbit {

// Compute type of a linear product.
//   int8: activations are quantised per 32 k (see QuantizedRows); codebooks are rounded to int8 (formats.h kinds kGrid and
//         kCodebook with at most 4 bits, plus sym_int8); used when the format has such a kernel, else fp32.
//   fp32: codes are expanded to their exact float values.
enum class Compute : uint8_t { int8 = 0, fp32 = 1 };

// m rows of activations, padded with zeros to k_padded (a multiple of 32). Symmetric int8 per 32 values, never -128:
//   scale[g] = max|x| / 127, code = round_half_even(x / scale) (all codes zero where scale is 0),
//   sum[g] = sum of the 32 codes.
// codes [m][k_padded] int8, scales [m][k_padded/32] fp32, sums [m][k_padded/32] int32; rows 64-byte aligned.
struct QuantizedRows {
    int8_t* codes;
    float* scales;
    int32_t* sums;
    int64_t k_padded;
    int64_t m;
};

struct FloatRows {  // fp32 [m][stride], zero from k to k_padded
    const float* data;
    int64_t stride;
    int64_t m;
};

inline constexpr int kMaxKernelRows = 8;  // m of one kernel call; linear.cpp loops

// y[row * y_stride + n] for the n of `panels` consecutive panels from `first_panel` (all 16 lanes are written, y has room
// for padded rows), row = 0..m-1, m <= kMaxKernelRows.
using LinearInt8 = void (*)(const PackedView& w, int64_t first_panel, int64_t panels, const QuantizedRows& x,
                            int64_t first_row, int m, float* y, int64_t y_stride);
using LinearFp32 = void (*)(const PackedView& w, int64_t first_panel, int64_t panels, const FloatRows& x,
                            int64_t first_row, int m, float* y, int64_t y_stride);

struct LinearKernels {
    LinearInt8 int8[16];  // by FormatId; null in every tier = the format has no int8 compute
    LinearFp32 fp32[16];
    // Quantises one row of k floats as QuantizedRows describes, padding with zeros up to k_padded.
    void (*quantize_row)(const float* x, int64_t k, int64_t k_padded, int8_t* codes, float* scales, int32_t* sums);
};

// Element-wise and attention kernels on fp32 rows. n is any positive length; pointers need no alignment.
struct VectorKernels {
    // y = x / sqrt(mean(x^2) + eps) * (weight + weight_offset)
    void (*rms_norm)(const float* x, const float* weight, float weight_offset, float eps, int64_t n, float* y);
    // y = (x - mean) / sqrt(var + eps) * weight + bias; weight and bias may be null
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* y);
    void (*add)(float* y, const float* x, float scale, int64_t n);             // y += scale * x
    void (*softmax)(float* x, int64_t n);                                      // in place, max subtracted
    void (*to_fp16)(const float* x, uint16_t* y, int64_t n);                   // round to nearest even
    void (*to_bf16)(const float* x, uint16_t* y, int64_t n);
    // activation(gate) * up, or activation(gate) when up is null; in: gate, out: y (may alias gate)
    void (*activate)(int activation, const float* gate, const float* up, int64_t n, float* y);
    // scores[t] = dot(q, key[t]) for t in [0, count); keys are [count][stride] halves of `dtype` (fp16 or bf16)
    void (*attention_scores)(const float* q, const uint16_t* keys, DType dtype, int64_t stride, int64_t count, int64_t dim,
                             float* scores);
    // out[d] += sum_t weights[t] * value[t][d]
    void (*attention_values)(const float* weights, const uint16_t* values, DType dtype, int64_t stride, int64_t count,
                             int64_t dim, float* out);
};

struct KernelTable {
    Tier tier;
    LinearKernels linear;
    VectorKernels vector;
};

// Merged tables: every entry of `tier` that is null comes from the tier below. `tier` must be available.
const KernelTable& kernel_table(Tier tier);

// Per tier: the kernels it adds, null where it has none (native/kernels/<tier>/linear.cpp and vector.cpp). These functions are
// compiled with the tier's instruction set: call them only when the tier is available.
namespace scalar { LinearKernels linear_kernels(); VectorKernels vector_kernels(); }
namespace avx2 { LinearKernels linear_kernels(); VectorKernels vector_kernels(); }
namespace avx512 { LinearKernels linear_kernels(); VectorKernels vector_kernels(); }

}  // namespace lowbit
