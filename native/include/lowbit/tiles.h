// Products in tiles (tier amx): for many rows of activations both sides are quantised to int8 again, so that 256 products are summed
// as integers before a scale is applied. Results differ from the other tiers' by that rounding (docs/performance.md); they do not
// depend on threads or on the rows that share a call. In fp32, one rounding per operation, no fused multiply-add:
//   activations   per row and 256 k: t = max|x| / 127, code = rint(clamp(x * (127 / max|x|), -127, 127));
//                 t itself, and codes of zero, where max|x| is 0 or not finite, or where 127 / max|x| overflows
//   weights       per output row and 256 k, over its groups with scale s (and minimum m) and integer codes q (formats.h, offset off):
//                   without minimum  top = max|s|, S = top * (L / 127), L the largest |q| of the format;
//                                    r = trunc(s * (32768 / 2^a * (127 / L) / top)), at most 32767, 2^a the least power >= 127 / L
//                   with minimum     top = max(|m|, |s * L + m|), S = top / 126; r = trunc(s * (32768 / 2^a * 126 / top)),
//                                    2^a the least power >= 252 / L; c = rint(m * (126 / top))
//                 code = ((q * 2^a * r + 2^14) >> 15) + c
//   output        y = (sum over blocks of 256 k: (fp32(integer sum) * S) * t) * multiplier
#pragma once
#include "lowbit/tensor.h"

namespace lowbit {

inline constexpr int kTileK = 64, kTileRows16 = 16, kTileBlockK = 256;

// Rows of activations, padded with zeros to whole tiles: codes [rows / 16][tiles_k][16][64], scales [block of k][padded_rows].
struct TiledRows {
    int8_t* codes;
    float* scales;
    int64_t m, padded_rows;  // padded to 16
    int64_t tiles_k, blocks;

    static TiledRows over(uint8_t* memory, int64_t m, int64_t k_padded) {
        TiledRows t{};
        t.m = m;
        t.padded_rows = (m + kTileRows16 - 1) / kTileRows16 * kTileRows16;
        t.tiles_k = (k_padded + kTileK - 1) / kTileK;
        t.blocks = (t.tiles_k * kTileK + kTileBlockK - 1) / kTileBlockK;
        t.codes = reinterpret_cast<int8_t*>(memory);
        t.scales = reinterpret_cast<float*>(memory + t.padded_rows * t.tiles_k * kTileK);
        return t;
    }
    int64_t bytes() const { return padded_rows * (tiles_k * kTileK + blocks * 4); }
};

// The operand of ldtilecfg.
struct alignas(64) TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t colsb[16];
    uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

// Null in the tiers below amx.
struct TileKernels {
    // Quantises row `row` of x: k floats, or nothing but zeros where x is null (rows of padding).
    void (*quantize)(const float* x, int64_t k, const TiledRows& t, int64_t row);
    // y[row * y_stride + n] for all rows of x and the n of `panels` consecutive panels; by FormatId.
    void (*int8[16])(const PackedView& w, int64_t first_panel, int64_t panels, const TiledRows& x, float* y, int64_t y_stride);
};

}  // namespace lowbit
