// The linear products as specification: every faster tier equals these loops (integer partial sums exactly, floats up to
// the order of summation). Written to be read, and for CPUs that have nothing better.
#include "lowbit/codebooks.h"
#include "lowbit/kernels.h"

namespace lowbit::scalar {
namespace {

#include "shared/half.h"

// ---- one packed code ------------------------------------------------------------------------------------------

// The `bits` low bits at (row, k) of one plane of an atom; see formats.h.
template <int bits>
unsigned plane_code(const uint8_t* plane, int row, int k) {
    const int b = k % 4, quad = k / 4;
    if constexpr (bits == 8) return plane[kLine * quad + 4 * row + b];
    if constexpr (bits == 4) return plane[kLine * (quad / 2) + 4 * row + b] >> (4 * (quad % 2)) & 15;
    if constexpr (bits == 2) return plane[kLine * (quad / 4) + 4 * row + b] >> (2 * (quad % 4)) & 3;
    if constexpr (bits == 1) return plane[8 * quad + row / 2] >> (4 * (row % 2) + b) & 1;
}

template <int bits>
unsigned code_at(const uint8_t* atom, int row, int k) {
    constexpr int plane_bytes = kPanelRows * kAtomK / 8;  // of a 1-bit plane
    if constexpr (bits == 3) return plane_code<2>(atom, row, k) | plane_code<1>(atom + 2 * plane_bytes, row, k) << 2;
    else if constexpr (bits == 5) return plane_code<4>(atom, row, k) | plane_code<1>(atom + 4 * plane_bytes, row, k) << 4;
    else if constexpr (bits == 6) return plane_code<4>(atom, row, k) | plane_code<2>(atom + 4 * plane_bytes, row, k) << 4;
    else return plane_code<bits>(atom, row, k);
}

uint16_t half_at(const uint8_t* line, int index) {
    uint16_t h;
    __builtin_memcpy(&h, line + 2 * index, 2);
    return h;
}

// ---- values ---------------------------------------------------------------------------------------------------

#include "shared/tables.h"

// The value of (row, k) before scale and minimum, in units of fp32 compute.
template <FormatId id>
float value_at(const uint8_t* atom, int row, int k) {
    constexpr Format f = kFormat<id>;
    if constexpr (id == FormatId::fp32) {
        float value;
        __builtin_memcpy(&value, atom + kLine * k + 4 * row, 4);
        return value;
    } else if constexpr (id == FormatId::fp16) {
        return half_to_float(half_at(atom + kLine * (k / 2), kPanelRows * (k % 2) + row));
    } else if constexpr (id == FormatId::bf16) {
        return bfloat_to_float(half_at(atom + kLine * (k / 2), 2 * row + k % 2));
    } else {
        const unsigned code = code_at<f.bits>(atom, row, k);
        if constexpr (f.codes == Codes::kCodebook) return kValues<id>.value[code];
        else return static_cast<float>(static_cast<int>(code) - f.offset);
    }
}

// The same for int8 compute, in units of kInteger<id>.factor.
template <FormatId id>
int integer_at(const uint8_t* atom, int row, int k) {
    const unsigned code = code_at<kFormat<id>.bits>(atom, row, k);
    if constexpr (kFormat<id>.codes == Codes::kCodebook) return kInteger<id>.code[code];
    else return static_cast<int>(code) - kFormat<id>.offset;
}

// ---- products -------------------------------------------------------------------------------------------------

// y[row][16 * panel + r] = sum over groups of scale * (sum over k of value * x) + min * (sum over k of x).
// Fold expands one atom (once for all rows), then adds its partial products and its sum of x for row i of m.
template <FormatId id, class Fold, class Rows>
void product(const PackedView& w, int64_t first_panel, int64_t panels, const Rows& x, int64_t first_row, int m, float* y,
             int64_t y_stride) {
    constexpr bool scaled = kFormat<id>.codes != Codes::kFloat, has_min = kFormat<id>.has_min;
    const Layout& l = w.layout;
    const int atoms = l.group_size / kAtomK;
    for (int64_t p = first_panel; p < first_panel + panels; p++) {
        float total[kMaxKernelRows][kPanelRows] = {};
        const uint8_t* tile = w.data + p * l.panel_bytes;
        int64_t k = 0;
        for (int64_t t = 0; t < l.tiles; t++, tile += l.tile_bytes) {
            const uint8_t* scales = tile + l.groups_per_tile * atoms * l.atom_bytes;
            const uint8_t* atom = tile;
            for (int g = 0; g < l.groups_per_tile; g++) {
                float dot[kMaxKernelRows][kPanelRows] = {}, sum[kMaxKernelRows] = {};
                for (int a = 0; a < atoms; a++, atom += l.atom_bytes, k += kAtomK) {
                    const Fold fold(atom);
                    for (int i = 0; i < m; i++) fold.add(x, first_row, m, i, k, dot[i], sum[i]);
                }
                for (int r = 0; r < kPanelRows; r++) {
                    const int lane = kPanelRows * g + r;
                    const float scale = scaled ? half_to_float(half_at(scales, lane)) : 1.0f;
                    const float min = has_min ? half_to_float(half_at(scales + kLine, lane)) : 0.0f;
                    for (int i = 0; i < m; i++) {
                        total[i][r] += scale * dot[i][r];
                        if (has_min) total[i][r] += min * sum[i];
                    }
                }
            }
        }
        for (int i = 0; i < m; i++)
            for (int r = 0; r < kPanelRows; r++)
                y[i * y_stride + p * kPanelRows + r] = total[i][r] * (w.multiplier * Fold::factor);
    }
}

template <FormatId id>
struct FoldInt8 {
    static constexpr float factor = kInteger<id>.factor;
    int16_t w[kAtomK][kPanelRows];

    explicit FoldInt8(const uint8_t* atom) {
        for (int k = 0; k < kAtomK; k++)
            for (int r = 0; r < kPanelRows; r++) w[k][r] = static_cast<int16_t>(integer_at<id>(atom, r, k));
    }
    void add(const QuantizedRows& x, int64_t block_row, int m, int i, int64_t k0, float* dot, float& sum) const {
        const int width = m <= 1 ? 1 : m <= 2 ? 2 : m <= 4 ? 4 : 8;
        const int8_t* codes = x.codes + block_row * x.k_padded + k0 * width;
        const float scale = x.scales[block_row * x.k_padded / kActivationK + k0 / kActivationK * width + i];
        const int32_t activations = x.sums[(block_row * x.k_padded + k0 * width) / kAtomK + i];
        int32_t partial[kPanelRows] = {};
        for (int k = 0; k < kAtomK; k++)
            for (int r = 0; r < kPanelRows; r++) partial[r] += codes[4 * (k / 4 * width + i) + k % 4] * w[k][r];
        for (int r = 0; r < kPanelRows; r++) dot[r] += scale * static_cast<float>(partial[r]);
        sum += scale * static_cast<float>(activations);
    }
};

template <FormatId id>
struct FoldFp32 {
    static constexpr float factor = 1.0f;
    float w[kAtomK][kPanelRows];

    explicit FoldFp32(const uint8_t* atom) {
        for (int k = 0; k < kAtomK; k++)
            for (int r = 0; r < kPanelRows; r++) w[k][r] = value_at<id>(atom, r, k);
    }
    void add(const FloatRows& x, int64_t block_row, int, int i, int64_t k0, float* dot, float& sum) const {
        const float* values = x.data + (block_row + i) * x.stride + k0;
        float partial[kPanelRows] = {}, partial_sum = 0;
        for (int k = 0; k < kAtomK; k++) {
            for (int r = 0; r < kPanelRows; r++) partial[r] += values[k] * w[k][r];
            partial_sum += values[k];
        }
        for (int r = 0; r < kPanelRows; r++) dot[r] += partial[r];
        sum += partial_sum;
    }
};

// ---- activations ----------------------------------------------------------------------------------------------

constexpr float kLargestFloat = 3.4028234663852886e38f;

// Adding and subtracting 1.5 * 2^23 rounds |v| < 2^22 to an integer, halves to even.
float round_half_even(float v) {
    constexpr float magic = 12582912.0f;
    return (v + magic) - magic;
}

void quantize_row(const float* x, int64_t k, int64_t k_padded, int width, int8_t* codes, float* scales, int32_t* sums) {
    for (int64_t block = 0; block < k_padded / kActivationK; block++) {
        const int64_t begin = block * kActivationK;
        const int valid = static_cast<int>(k - begin < 0 ? 0 : k - begin < kActivationK ? k - begin : kActivationK);
        // Magnitudes are compared as bit patterns, so a NaN is larger than anything and reaches the scale.
        uint32_t largest = 0;
        for (int i = 0; i < valid; i++) {
            uint32_t bits;
            __builtin_memcpy(&bits, x + begin + i, 4);
            bits &= 0x7fffffffu;
            if (bits > largest) largest = bits;
        }
        float magnitude;
        __builtin_memcpy(&magnitude, &largest, 4);
        const float scale = magnitude / 127.0f, inverse = 127.0f / magnitude;
        // A scale that is infinite or NaN makes the products NaN by itself.
        const bool usable = inverse > 0 && inverse <= kLargestFloat;
        int32_t sum[kActivationK / kAtomK] = {};
        for (int i = 0; i < kActivationK; i++) {
            int code = 0;
            if (usable && i < valid) {
                code = static_cast<int>(round_half_even(x[begin + i] * inverse));
            }
            codes[(begin + i / 4 * 4) * width + i % 4] = static_cast<int8_t>(code);
            sum[i / kAtomK] += code;
        }
        scales[block * width] = scale;
        for (int a = 0; a < kActivationK / kAtomK; a++) sums[(block * kActivationK / kAtomK + a) * width] = sum[a];
    }
}

template <FormatId id>
constexpr bool has_int8 = kFormat<id>.codes == Codes::kGrid || (kFormat<id>.codes == Codes::kCodebook && kFormat<id>.bits <= 4);

template <FormatId id>
void add_format(LinearKernels& k) {
    constexpr int i = static_cast<int>(id);
    k.fp32[i] = product<id, FoldFp32<id>, FloatRows>;
    if constexpr (has_int8<id>) k.int8[i] = product<id, FoldInt8<id>, QuantizedRows>;
}

}  // namespace

LinearKernels linear_kernels() {
    LinearKernels k{};
#define X(name, ...) add_format<FormatId::name>(k);
    LOWBIT_FORMATS(X)
#undef X
    k.quantize_row = quantize_row;
    return k;
}

}  // namespace lowbit::scalar
