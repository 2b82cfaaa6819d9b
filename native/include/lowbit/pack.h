// Between float matrices and the packed layout: quantise, dequantise, gather rows. Scalar code, the specification that
// numpy (backend/lowbit/quantize.py) equals bit for bit; threads split panels.
#pragma once
#include "lowbit/tensor.h"
#include "lowbit/threads.h"

namespace lowbit {

// Largest |w|; NaN if any element is NaN, infinity if any is infinite.
float abs_max(ThreadPool& pool, const FloatView& w);

// The power of two that brings the largest scale of a tensor with this abs_max to at most 1: all scales are stored divided
// by it. 1 for abs_max 0 and for float formats.
float scale_multiplier(const Format& f, float abs_max);

// A search for the best clip of every group: of the round-to-nearest scales times each ratio, the one with the smallest
// sum of importance * (weight - value)^2, the first of equals. Summed in double, in the order of k, over the group's own
// weights. For formats with a minimum, minimum and span are both multiplied by the ratio.
struct ClipSearch {
    const float* ratios = nullptr;  // [count], in (0, 1]; none: no search
    int count = 0;
    const float* importance = nullptr;  // [cols], finite and >= 0; null: all weights count the same
};

// Round-to-nearest quantisation of all rows of w into whole panels at `out` (layout_of(f, w.rows, w.cols, group_size).bytes
// bytes, 64-byte aligned). Rows past w.rows in the last panel get the zero code and scale 0, so a matrix may be
// packed in chunks of a multiple of 16 rows. full_range false restricts symmetric grids to -(2^(b-1)-1)..2^(b-1)-1 with
// scale abs_max / (2^(b-1)-1) (ITREX int4_clip). Precondition: w is finite.
void quantize(ThreadPool& pool, const FloatView& w, const Format& f, int group_size, float multiplier, bool full_range,
              uint8_t* out, const ClipSearch& search = {});

// Codes that somebody else chose, row-major [rows, cols] with a row stride in bytes; scales and minima are halves, row-major
// [rows, groups], groups = ceil(cols / group size), 1 per row. minima null: all 0.
struct CodesView {
    const uint8_t* codes = nullptr;
    int64_t rows = 0, cols = 0, stride = 0, groups = 0;
    const uint16_t* scales = nullptr;
    const uint16_t* minima = nullptr;
};

// Given codes, scales and minima of a format that has groups into whole panels at `out`, as `quantize` writes what it
// chooses. False when a code has more bits than the format.
bool pack_codes(ThreadPool& pool, const CodesView& w, const Format& f, int group_size, uint8_t* out);

// Integer codes of 4 or 8 bits, packed into 32-bit words lowest first, as bytes out[row][k]. kAlongK (GPTQ): words [k *
// bits / 32][words_stride], a word holds consecutive k of one row. kAlongRows: words [k][words_stride], a word holds
// consecutive rows of one k; kAlongRowsAwq: in AWQ's order, bits 4 * i hold row 0, 2, 4, 6, 1, 3, 5, 7. Rows [first_row,
// first_row + rows); in the last two first_row is a multiple of 32 / bits.
enum class WordOrder : uint8_t { kAlongK = 0, kAlongRows = 1, kAlongRowsAwq = 2 };
void unpack_words(ThreadPool& pool, const uint32_t* words, int64_t words_stride, WordOrder order, int bits,
                  int64_t first_row, int64_t rows, int64_t k, uint8_t* out, int64_t stride);

// Exact float values of rows [first_row, first_row + count) as fp32 [count][stride].
void dequantize(ThreadPool& pool, const PackedView& w, int64_t first_row, int64_t count, float* out, int64_t stride);

// out[i] = row ids[i] of w, fp32 [n][stride], for embedding look-up; single-threaded, ids in range.
void gather_rows(const PackedView& w, const int32_t* ids, int64_t n, float* out, int64_t stride);

}  // namespace lowbit
