// The KV cache of one session: reserved once for its whole context, touched as it grows, truncated to reuse a prefix.
//
// Positions stand in blocks of kKvBlock; a block holds all layers: [block][layer][head], there the keys of the block
// transposed, [head_dim][kKvBlock], then its values [kKvBlock][head_dim padded to 16]. So a session that has seen n
// tokens has touched the memory of n tokens even where the system backs it with 2 MiB pages, and attention multiplies
// whole vectors without shuffling: 16 keys, or 16 dimensions of a value, at a time.
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
    void truncate(int64_t length);  // keeps the first `length` positions; throws std::invalid_argument unless 0 <=
                                    // length <= length()
    int64_t bytes_reserved() const { return static_cast<int64_t>(memory_.bytes()); }

    // The block of `position`: its keys, element (d, position) at d * kKvBlock + position % kKvBlock ...
    uint8_t* keys(int64_t layer, int64_t head, int64_t position) const {
        return memory_.data() + position / kKvBlock * block_bytes_ + (layer * shape_.kv_heads + head) * head_bytes_;
    }
    // ... and its values, element (position, d) at position % kKvBlock * value_stride() + d.
    uint8_t* values(int64_t layer, int64_t head, int64_t position) const {
        return keys(layer, head, position) + key_bytes_;
    }
    int64_t value_stride() const { return value_stride_; }

private:
    KvShape shape_;
    int64_t length_ = 0, value_stride_ = 0, key_bytes_ = 0, head_bytes_ = 0, block_bytes_ = 0;
    Reservation memory_;
};

}  // namespace lowbit
