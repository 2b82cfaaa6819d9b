// The KV cache of one session: reserved once for its whole context, touched as it grows, truncated to reuse a prefix.
#pragma once
#include <cstdint>

#include "lowbit/tensor.h"

namespace lowbit {

struct KvShape {
    int64_t layers, kv_heads, head_dim, capacity;
    DType dtype;  // fp16 or bf16 (fp32 for exactness tests); int8 has its place in the speed work
};

class KvCache {
public:
    explicit KvCache(const KvShape& shape);  // throws std::bad_alloc with nothing reserved
    ~KvCache();
    KvCache(const KvCache&) = delete;
    KvCache& operator=(const KvCache&) = delete;

    const KvShape& shape() const { return shape_; }
    int64_t length() const { return length_; }
    void advance(int64_t n) { length_ += n; }
    void truncate(int64_t length);  // 0 <= length <= length(); keeps the first `length` positions
    int64_t bytes_reserved() const { return bytes_; }

    // Row of position 0 of one head; positions follow each other by stride() elements.
    uint8_t* keys(int64_t layer, int64_t head);
    uint8_t* values(int64_t layer, int64_t head);
    int64_t stride() const { return stride_; }

private:
    KvShape shape_;
    int64_t length_ = 0, stride_ = 0, bytes_ = 0;
    uint8_t* data_ = nullptr;
};

}  // namespace lowbit
