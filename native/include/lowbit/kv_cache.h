// The KV cache of one session: grows by pages, is truncated to reuse a prefix, forked to share one.
//
// Positions stand in blocks of kKvBlock, blocks in pages: [page][layer][head][block], so that attention reads several in
// a row; there the keys of the block transposed, [head_dim][kKvBlock], then its values [kKvBlock][head_dim padded to 16]. Codes (int8, int16) stand in pairs of what
// is added up, [head_dim padded to 2 / 2][kKvBlock][2] and [kKvBlock / 2][head_dim padded to 16][2]; behind the keys, and again
// behind the values, stand kKvBlock scales (fp32), one for each position. Attention
// multiplies whole vectors without shuffling: 16 keys, or 16 dimensions of a value, at a time. Pages have the
// size of one or two huge pages, of a block where that is more, or of the whole capacity where that is less. Forks
// share the pages they both have in full: a prefix that many sessions begin with is held once, and forking costs the
// copy of one page at most.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "lowbit/code_attention.h"
#include "lowbit/memory.h"

namespace lowbit {

struct KvShape {
    int64_t layers, kv_heads, head_dim, capacity;
    KvType type;  // fp32 for exactness tests
};

class KvCache {
public:
    // Throws std::invalid_argument for sizes below 1 and std::bad_alloc with nothing reserved.
    explicit KvCache(const KvShape& shape);

    const KvShape& shape() const { return shape_; }
    int64_t length() const { return length_; }
    void advance(int64_t n) { length_ += n; }
    // Keeps the first `length` positions and lets go of the pages behind them; throws std::invalid_argument unless 0 <=
    // length <= length().
    void truncate(int64_t length);

    // Memory for `n` more positions that this cache alone writes. Throws std::bad_alloc with the content unchanged.
    void grow(int64_t n);

    // Fills an empty cache with `n` positions of zeros: what a context of that length takes in memory and in time to
    // attend to, without computing one. For benchmarks. Throws std::invalid_argument unless length() is 0, and as grow.
    void fill(int64_t n);

    // A cache with the first `length` positions of this one. Both may grow on. Neither may be in a pass meanwhile.
    // Throws std::invalid_argument as truncate does, std::bad_alloc.
    std::unique_ptr<KvCache> fork(int64_t length) const;

    // Bytes that caches hold together, what they share counted once.
    static int64_t bytes(const std::vector<const KvCache*>& caches);
    int64_t bytes_per_position() const { return block_bytes_ / kKvBlock; }

    // The block of `position`: its keys ...
    uint8_t* keys(int64_t layer, int64_t head, int64_t position) const {
        return blocks_[position / kKvBlock] + (layer * shape_.kv_heads + head) * page_blocks_ * head_bytes_;
    }
    // ... and its values.
    uint8_t* values(int64_t layer, int64_t head, int64_t position) const {
        return keys(layer, head, position) + key_bytes_;
    }
    int64_t key_rows() const { return key_rows_; }  // of kKvBlock elements: head_dim, for codes rounded up to 2
    int64_t value_stride() const { return value_stride_; }
    // The scales of a block's codes, from what keys() and values() give.
    const float* key_scales(const uint8_t* keys) const { return scales_at(keys, key_rows_); }
    const float* value_scales(const uint8_t* values) const { return scales_at(values, value_stride_); }
    int64_t head_bytes() const { return head_bytes_; }  // of a block of keys and values of one head, which stand together

    // Writes one key and one value (head_dim floats each) of a head; `scratch` holds 2 * head_dim. What is not finite
    // makes codes of both NaN as a whole.
    void store(const KernelTable& kernels, int64_t layer, int64_t head, int64_t position, const float* key,
               const float* value, uint16_t* scratch) const;

private:
    KvShape shape_;
    int64_t length_ = 0, key_rows_ = 0, value_stride_ = 0, key_bytes_ = 0, head_bytes_ = 0, block_bytes_ = 0;
    int64_t page_blocks_ = 0, page_bytes_ = 0;
    std::vector<std::shared_ptr<Reservation>> pages_;
    std::vector<uint8_t*> blocks_;  // of all pages in order: where they begin in the first layer's first head

    const float* scales_at(const uint8_t* codes, int64_t rows) const {
        return reinterpret_cast<const float*>(codes + rows * kKvBlock * kv_type_size(shape_.type));
    }
    int64_t page_positions() const { return page_blocks_ * kKvBlock; }
    void store_codes(const CodeAttentionKernels& kernels, uint8_t* to_keys, uint8_t* to_values, int64_t at, const float* key,
                     const float* value, int16_t* scratch) const;
    int64_t pages_for(int64_t positions) const { return (positions + page_positions() - 1) / page_positions(); }
    void check_length(int64_t length, const char* what) const;
    void set_page(int64_t index, std::shared_ptr<Reservation> page);
    std::shared_ptr<Reservation> copy_of(int64_t index, int64_t positions) const;
};

}  // namespace lowbit
