#include "lowbit/kv_cache.h"

#include <new>
#include <stdexcept>
#include <string>

namespace lowbit {
namespace {

constexpr int64_t kValueAlign = 16;  // elements: values are whole vectors on every tier
constexpr int64_t kAliasing = 4096;  // bytes; heads a multiple of this apart would compete for the same cache sets

}  // namespace

KvCache::KvCache(const KvShape& shape) : shape_(shape) {
    if (shape.layers < 1 || shape.kv_heads < 1 || shape.head_dim < 1 || shape.capacity < 1)
        throw std::invalid_argument("a KvCache needs layers, kv_heads, head_dim and capacity of at least 1");
    constexpr int64_t kLargest = int64_t{1}
                                 << 31;  // of each size; keeps the products below 2^63 or clearly above memory
    if (shape.layers > kLargest || shape.kv_heads > kLargest || shape.head_dim > kLargest || shape.capacity > kLargest)
        throw std::bad_alloc();
    const int64_t size = dtype_size(shape.dtype);
    value_stride_ = (shape.head_dim + kValueAlign - 1) / kValueAlign * kValueAlign;
    key_bytes_ = shape.head_dim * kKvBlock * size;
    head_bytes_ = key_bytes_ + value_stride_ * kKvBlock * size;
    if (head_bytes_ % kAliasing == 0) head_bytes_ += kLine;
    const __int128 block = static_cast<__int128>(head_bytes_) * shape.layers * shape.kv_heads;
    const __int128 total = block * ((shape.capacity + kKvBlock - 1) / kKvBlock);
    if (total > (__int128{1} << 62)) throw std::bad_alloc();
    block_bytes_ = static_cast<int64_t>(block);
    memory_ = Reservation(static_cast<size_t>(total));
}

void KvCache::truncate(int64_t length) {
    if (length < 0 || length > length_)
        throw std::invalid_argument("cannot truncate a KvCache of length " + std::to_string(length_) + " to " +
                                    std::to_string(length));
    length_ = length;
}

}  // namespace lowbit
