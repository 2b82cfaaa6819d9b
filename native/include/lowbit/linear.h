// y = x W^T over a packed weight: chooses the kernel, splits panels over a team, loops over blocks of rows.
#pragma once
#include "lowbit/kernels.h"
#include "lowbit/threads.h"

namespace lowbit {

// Does this format have an int8 kernel at all (on any tier)?
bool has_int8_compute(const Format& f);

// Do activations rounded to bf16 meet kernels of their own, as halves? Else those of fp32, as floats.
inline bool has_bf16_kernels(const LinearKernels& k) { return k.bf16[static_cast<int>(FormatId::bf16)] != nullptr; }

// What a compute type rounds activations to, for weights of a format that read them; neither: they are read exact.
struct Rounding {
    bool int8 = false, bf16 = false;

    static Rounding of(const Format& f, Compute compute);
    Rounding operator|(Rounding o) const { return {int8 || o.int8, bf16 || o.bf16}; }
    explicit operator bool() const { return int8 || bf16; }
};

// Bytes of scratch a LinearInput needs for m rows padded to k_padded.
size_t linear_input_bytes(int64_t m, int64_t k_padded, Rounding rounding);

// The input of one or more linear products, prepared once: x [m][x_stride] fp32 with k valid columns, readable and zero up to
// k_padded. `quantized` and `bf16` (each null without a reader) point into scratch given by the caller; compute: of the product that
// reads it.
struct LinearInput {
    FloatRows rows{};
    QuantizedRows quantized{};
    // Rows rounded to bf16, [m][stride]: halves where the tier has bf16_kernels(), else floats.
    struct Rounded {
        void* data = nullptr;
        int64_t stride = 0, k_padded = 0, first_row = 0;
    } bf16;
    int64_t k = 0;
    Compute compute = Compute::int8;
};

// Lays out `input` over scratch (64-byte aligned, linear_input_bytes). No work yet.
LinearInput linear_input(const float* x, int64_t x_stride, int64_t m, int64_t k, int64_t k_padded, Compute compute,
                         Rounding rounding, void* scratch);

// Where a row of m stands in QuantizedRows: code k of `row` at
//   codes[block * k_padded + k / together * together * width + lane * together + k % together],
// its scale of group g at scales[block * k_padded / 64 + g * width + lane], its sum of atom a at sums[block * k_padded / 32 +
// a * width + lane].
struct RowPlace {
    int64_t block, lane;  // first row of its block, its place there
    int width, together;
};
RowPlace row_place(const LinearKernels& kernels, int64_t m, int64_t row);

// Rounds columns [begin, end) of one row (no-op without a reader); begin is a multiple of kActivationK, end too or k (then the padding is
// written). Not collective: members may do disjoint parts in any order. The values are those of the row, or stand at `values`.
void quantize_columns(const KernelTable& kernels, const LinearInput& input, int64_t row, int64_t begin, int64_t end,
                      const float* values = nullptr);

// Collective: rounds the rows (no-op without a reader). Ends without a barrier: callers put one before linear().
void prepare_input(Team& team, const KernelTable& kernels, LinearInput& input);

// Collective: y[m][y_stride] = x W^T (+ bias, fp32 [rows] or null). y has room for layout.panels*16 columns per row; the
// columns past rows are scratch. No barrier inside. The input has been rounded as Rounding::of the format and x.compute says.
void linear(Team& team, const KernelTable& kernels, const PackedView& w, const float* bias, const LinearInput& x, float* y,
            int64_t y_stride);

// By one member alone: y[m][y_stride] = columns [first, first + columns) of x W^T. first is a multiple of 16, and y has
// room for whole panels of 16 columns. Equal to linear() to the last bit.
void linear_columns(const KernelTable& kernels, const PackedView& w, int64_t first, int64_t columns, const LinearInput& x, float* y,
                    int64_t y_stride);

}  // namespace lowbit
