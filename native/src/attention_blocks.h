// The softmax of a few queries over blocks of keys: what attention.cpp shares among threads and puts together.
#pragma once
#include "forward.h"

namespace lowbit {

// Softmax over the keys seen so far, per query row: sums of e^(score - largest), and of the values weighted so.
struct Softmax {
    float* out;  // [rows][width], width = the cache's value stride
    RowSoftmax* rows;

    Softmax(float* memory, int64_t rows, int64_t width)
        : out(memory), rows(reinterpret_cast<RowSoftmax*>(memory + rows * width)) {}
    static int64_t floats(int64_t rows, int64_t width) {
        return rows * (width + static_cast<int64_t>(sizeof(RowSoftmax) / sizeof(float)));
    }
};

// The queries of `tokens` rows of a segment from `first_row` that use kv head `head`.
struct Block {
    const Segment& segment;
    int64_t first_row, tokens, head;
    const uint8_t* next = nullptr;  // the block of keys that this thread attends to afterwards

    int64_t position() const { return segment.first_position + first_row - segment.first_row; }
};

int64_t block_floats(const ModelSpec& s, int64_t rows);  // scratch of accumulate for up to so many query rows

// The softmax of a block of queries over the keys at positions [begin, end), begin on a border of the cache's blocks.
void accumulate(const AttentionContext& c, const Block& b, int64_t begin, int64_t end, float* scratch, const Softmax& x);

}  // namespace lowbit
