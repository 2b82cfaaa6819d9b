// Attention over KV caches of codes (code_attention.h) for many rows of queries in tile instructions, which multiply bytes. A code of 16
// bits is 256 times its high byte, which is signed, plus its low byte, which is not: the products of both with both, 2^16, 2^8 and 1
// times, sum to the very integers that CodeAttentionKernels have, and what follows them is the same.
#pragma once
#include "lowbit/code_attention.h"

namespace lowbit {

// What a tile holds: kTileBlockRows rows of kTileK bytes, or kPanelRows columns of as many, four of one column beside each other.
inline constexpr int kTileK = 64;
inline constexpr int64_t kTileBytes = kTileBlockRows * kTileK;

// Bytes of `rows` rows of n codes (16 bits) apart: [rows / 16][n / 64][high, low][16][64], where all is rounded up.
constexpr int64_t split_rows_bytes(int64_t rows, int64_t n) {
    return (rows + kTileBlockRows - 1) / kTileBlockRows * ((n + kTileK - 1) / kTileK) * 2 * kTileBytes;
}
// Bytes of n lines of `columns` codes apart: [columns / 16][n / 64][high, low][16][16][4], of 8 bits: without the plane of the low ones.
constexpr int64_t split_lines_bytes(KvType type, int64_t n, int64_t columns) {
    return (n + kTileK - 1) / kTileK * kTileK * columns * kv_type_size(type);
}

struct CodeTileKernels {
    // A thread makes the calls below them between these two: it has its tiles configured from the one to the other.
    void (*begin)();
    void (*end)();
    // `rows` <= kTileBlockRows rows of scores and of values, for the keys and values that split_lines has split; the rest as in
    // CodeAttentionKernels, with equal results. q and weights come from split_rows; weights from count on are 0.
    void (*scores)(const uint8_t* q, const float* q_scales, int64_t rows, const uint8_t* keys, KvType type, const float* scales,
                   int64_t count, int64_t dim, float* scores, const uint8_t* next);
    void (*values)(const uint8_t* weights, int64_t rows, const uint8_t* values, KvType type, int64_t dim, const RowSoftmax* state,
                   float* out, const uint8_t* next);
    // codes [rows][n] -> planes. What stands in the last rows of the planes, where there are no codes for them, is left as it is.
    void (*split_rows)(const int16_t* codes, int64_t rows, int64_t n, uint8_t* planes);
    // codes [n / 2][columns][2] -> planes; n is even, columns a multiple of 16.
    void (*split_lines)(const void* codes, KvType type, int64_t n, int64_t columns, uint8_t* planes);
};

// Static; call them only when the tier is available.
namespace amx { const CodeTileKernels* code_tile_kernels(); }
namespace amx_model { const CodeTileKernels* code_tile_kernels(); }

}  // namespace lowbit
