// Attention over codes on real tile instructions against the avx512 tier, to the last bit; part of tiles.cpp's program.
#include "attention_tiles.h"

#include "lowbit/code_tiles.h"
#include "random.h"

using namespace lowbit;

namespace {

constexpr int64_t kMostRows = 40, kMostDim = 256;
constexpr int64_t kRows[] = {1, 16, 17, 40}, kCounts[] = {1, 17, 64}, kDims[] = {2, 32, 64, 80, 96, 128, 256};

alignas(64) int16_t row_codes[kMostRows * kMostDim], block[kMostDim * kKvBlock];
alignas(64) uint8_t row_bytes[split_rows_bytes(kMostRows, kMostDim)], block_bytes[split_lines_bytes(KvType::int16, kMostDim, kKvBlock)];
alignas(64) float scales[kMostDim], tiles[kMostRows * kMostDim], vectors[kMostRows * kMostDim];
RowSoftmax state[kMostRows];

// All operands of rows and of a block of either type of codes; keeps bytes that have signs at 0 and above where others are not wanted.
void fill(KvType type, bool negatives, Random& random) {
    const uint32_t kept = negatives ? 0xffffffff : type == KvType::int16 ? 0x7fff7fff : 0x7f7f7f7f;
    for (int16_t& code : row_codes) code = static_cast<int16_t>(random.bits() & (negatives ? 0xffff : 0x7fff));
    for (int64_t i = 0; i < kMostDim * kKvBlock / 2; i++) {
        const uint32_t both = random.bits() & kept;
        __builtin_memcpy(block + 2 * i, &both, 4);
    }
    for (float& scale : scales) scale = random.value();
    for (RowSoftmax& s : state) s = {0, 1, random.value(), random.value()};
    for (int64_t i = 0; i < kMostRows * kMostDim; i++) tiles[i] = vectors[i] = random.value();
}

bool equal(const float* a, const float* b, int64_t n) { return __builtin_memcmp(a, b, static_cast<size_t>(n) * sizeof(float)) == 0; }

bool equal_scores(const CodeTileKernels& t, const CodeAttentionKernels& v, KvType type, int64_t rows, int64_t count, int64_t dim) {
    t.split_rows(row_codes, rows, dim, row_bytes);
    t.split_lines(block, type, dim, kKvBlock, block_bytes);
    for (int64_t r = 0; r < rows; r += kTileBlockRows)
        t.scores(row_bytes + split_rows_bytes(r, dim), scales + r, rows - r < kTileBlockRows ? rows - r : kTileBlockRows, block_bytes,
                 type, scales, count, dim, tiles + r * kKvBlock, nullptr);
    v.scores(row_codes, scales, rows, block, type, scales, count, dim, vectors, nullptr);
    for (int64_t r = 0; r < rows; r++)
        if (!equal(tiles + r * kKvBlock, vectors + r * kKvBlock, count)) return false;
    return true;
}

bool equal_values(const CodeTileKernels& t, const CodeAttentionKernels& v, KvType type, int64_t rows, int64_t dim) {
    t.split_rows(row_codes, rows, kKvBlock, row_bytes);
    t.split_lines(block, type, kKvBlock, dim, block_bytes);
    for (int64_t r = 0; r < rows; r += kTileBlockRows)
        t.values(row_bytes + split_rows_bytes(r, kKvBlock), rows - r < kTileBlockRows ? rows - r : kTileBlockRows, block_bytes, type,
                 dim, state + r, tiles + r * dim, nullptr);
    v.values(row_codes, rows, block, type, kKvBlock, dim, state, vectors, nullptr);
    return equal(tiles, vectors, rows * dim);
}

}  // namespace

Compared compare_attention(bool negatives) {
    const CodeTileKernels& t = *amx::code_tile_kernels();
    const CodeAttentionKernels v = avx512::code_attention_kernels();
    Random random;
    Compared result{};
    const auto note = [&](bool is_equal) { result.all++, result.equal += is_equal; };
    t.begin();
    for (const KvType type : {KvType::int8, KvType::int16})
        for (const int64_t dim : kDims)
            for (const int64_t rows : kRows) {
                for (const int64_t count : kCounts) {
                    fill(type, negatives, random);
                    note(equal_scores(t, v, type, rows, count, dim));
                }
                fill(type, negatives, random);
                if (dim % kPanelRows == 0) note(equal_values(t, v, type, rows, dim));
            }
    t.end();
    return result;
}
