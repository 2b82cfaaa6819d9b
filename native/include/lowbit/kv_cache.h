// The KV cache of one session: reserved once for its whole context, touched as it grows, truncated to reuse a prefix.
//
// Positions stand in blocks of kKvBlock; a block holds all layers: [block][layer][head][keys, values][kKvBlock][stride]. So a
// session that has seen n tokens has touched the memory of n tokens even where the system backs it with 2 MiB pages, and
// attention reads whole runs of keys.
#pragma once
#include <cstdint>

#include "lowbit/kernels.h"
#include "lowbit/memory.h"

namespace lowbit {

struct KvShape {
    int64_t layers, kv_heads, head_dim, capacity;
    DType dtype;  // fp16 or bf16 (fp32 for exactness tests); int8 has its place in the speed work
};

class KvCache {
public:
    // Throws std::invalid_argument for sizes below 1 and std::bad_alloc with nothing reserved.
    explicit KvCache(const KvShape& shape);

    const KvShape& shape() const { return shape_; }
    int64_t length() const { return length_; }
    void advance(int64_t n) { length_ += n; }
    void truncate(int64_t length);  // keeps the first `length` positions; throws std::invalid_argument unless 0 <= length <= length()
    int64_t bytes_reserved() const { return static_cast<int64_t>(memory_.bytes()); }

    // Row of one position; the rows up to the end of its block follow at stride() elements.
    uint8_t* keys(int64_t layer, int64_t head, int64_t position) const { return row(2 * (layer * shape_.kv_heads + head), position); }
    uint8_t* values(int64_t layer, int64_t head, int64_t position) const {
        return row(2 * (layer * shape_.kv_heads + head) + 1, position);
    }
    int64_t stride() const { return stride_; }

private:
    uint8_t* row(int64_t plane, int64_t position) const {
        return memory_.data() + position / kKvBlock * block_bytes_ + plane * plane_bytes_ + position % kKvBlock * row_bytes_;
    }

    KvShape shape_;
    int64_t length_ = 0, stride_ = 0, row_bytes_ = 0, plane_bytes_ = 0, block_bytes_ = 0;
    Reservation memory_;
};

}  // namespace lowbit
