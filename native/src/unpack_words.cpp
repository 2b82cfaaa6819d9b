// Integer codes of other people's checkpoints, packed into 32-bit words, as one byte each.
#include <algorithm>
#include <cstring>

#include "lowbit/pack.h"

namespace lowbit {
namespace {

constexpr int kAwqRow[8] = {0, 2, 4, 6, 1, 3, 5, 7};
constexpr int64_t kRows = 64;   // a thread's block of rows: their cache lines of words and of codes stay in L1
constexpr int64_t kInputs = 64; // and of k

// The codes of a word as bytes, in order.
inline uint64_t spread4(uint32_t word) {
    uint64_t x = word;
    x = (x | x << 16) & 0x0000FFFF0000FFFFull;
    x = (x | x << 8) & 0x00FF00FF00FF00FFull;
    return (x | x << 4) & 0x0F0F0F0F0F0F0F0Full;
}

void along_k(const uint32_t* words, int64_t stride, int bits, int64_t first, int64_t count, int64_t k, uint8_t* out,
             int64_t out_stride) {
    const int64_t per = 32 / bits;
    for (int64_t start = 0; start < count; start += kRows) {
        const int64_t stop = std::min(count, start + kRows);
        for (int64_t at = 0; at < k; at += per) {
            const uint32_t* line = words + at / per * stride + first;
            const int64_t valid = std::min(per, k - at);
            for (int64_t r = start; r < stop; r++) {
                const uint64_t bytes = bits == 4 ? spread4(line[r]) : line[r];
                std::memcpy(out + r * out_stride + at, &bytes, valid);
            }
        }
    }
}

void along_rows(const uint32_t* words, int64_t stride, int bits, bool awq, int64_t first, int64_t count, int64_t k,
                uint8_t* out, int64_t out_stride) {
    const int64_t per = 32 / bits;
    for (int64_t start = 0; start < k; start += kInputs) {
        const int64_t stop = std::min(k, start + kInputs);
        for (int64_t r = 0; r < count; r += per) {
            const uint32_t* column = words + (first + r) / per;
            for (int64_t at = start; at < stop; at++) {
                const uint64_t bytes = bits == 4 ? spread4(column[at * stride]) : column[at * stride];
                for (int64_t i = 0; i < per; i++) {
                    const int64_t row = r + (awq ? kAwqRow[i] : i);
                    if (row < count) out[row * out_stride + at] = static_cast<uint8_t>(bytes >> (8 * i));
                }
            }
        }
    }
}

}  // namespace

void unpack_words(ThreadPool& pool, const uint32_t* words, int64_t words_stride, WordOrder order, int bits,
                  int64_t first_row, int64_t rows, int64_t k, uint8_t* out, int64_t stride) {
    const int64_t blocks = (rows + kRows - 1) / kRows;  // of whole words: kRows is a multiple of 32 / bits
    pool.run([&](Team& team) {
        const Team::Range own = team.slice(blocks);
        const int64_t begin = own.begin * kRows, count = std::min(rows, own.end * kRows) - begin;
        if (count <= 0) return;
        uint8_t* to = out + begin * stride;
        if (order == WordOrder::kAlongK)
            along_k(words, words_stride, bits, first_row + begin, count, k, to, stride);
        else
            along_rows(words, words_stride, bits, order == WordOrder::kAlongRowsAwq, first_row + begin, count, k, to, stride);
    });
}

}  // namespace lowbit
