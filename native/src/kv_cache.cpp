#include "lowbit/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <unordered_set>

#include "buffers.h"

namespace lowbit {
namespace {

constexpr int64_t kValueAlign = 16;  // elements: values are whole vectors on every tier
constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kMostPageBytes = 2 * kHugePage;  // unless a block has more: forks copy what they share of a page
constexpr int64_t kAliasing = 4096;  // bytes; heads a multiple of this apart would compete for the same cache sets

int64_t whole_huge_pages(int64_t bytes) { return round_up(bytes, kHugePage); }

// Room that is given away so that a page ends with a huge page.
bool is_nearly_whole(int64_t bytes) { return whole_huge_pages(bytes) - bytes <= bytes / 12; }

// What of a page is not in huge pages, which are read faster.
double small_share(int64_t bytes) {
    return is_nearly_whole(bytes) ? 0.0 : static_cast<double>(bytes % kHugePage) / static_cast<double>(bytes);
}

// The fewest blocks whose page has the least share of small pages.
int64_t blocks_per_page(int64_t block_bytes) {
    int64_t best = 1;
    for (int64_t n = 2; n * block_bytes <= kMostPageBytes; n++)
        if (small_share(n * block_bytes) < small_share(best * block_bytes)) best = n;
    return best;
}

}  // namespace

KvCache::KvCache(const KvShape& shape) : shape_(shape) {
    if (shape.layers < 1 || shape.kv_heads < 1 || shape.head_dim < 1 || shape.capacity < 1)
        throw std::invalid_argument("a KvCache needs layers, kv_heads, head_dim and capacity of at least 1");
    constexpr int64_t kLargest = int64_t{1}
                                 << 31;  // of each size; keeps the products below 2^63 or clearly above memory
    if (shape.layers > kLargest || shape.kv_heads > kLargest || shape.head_dim > kLargest || shape.capacity > kLargest)
        throw std::bad_alloc();
    const int64_t size = kv_type_size(shape.type);
    key_rows_ = is_codes(shape.type) ? (shape.head_dim + 1) / 2 * 2 : shape.head_dim;
    value_stride_ = (shape.head_dim + kValueAlign - 1) / kValueAlign * kValueAlign;
    const int64_t scales = is_codes(shape.type) ? kKvBlock * static_cast<int64_t>(sizeof(float)) : 0;
    key_bytes_ = key_rows_ * kKvBlock * size + scales;
    head_bytes_ = key_bytes_ + value_stride_ * kKvBlock * size + scales;
    if (head_bytes_ % kAliasing == 0) head_bytes_ += kLine;
    const __int128 block = static_cast<__int128>(head_bytes_) * shape.layers * shape.kv_heads;
    const int64_t blocks = (shape.capacity + kKvBlock - 1) / kKvBlock;
    if (block * blocks > (__int128{1} << 62)) throw std::bad_alloc();
    block_bytes_ = static_cast<int64_t>(block);
    page_blocks_ = std::min(blocks_per_page(block_bytes_), blocks);
    page_bytes_ = page_blocks_ * block_bytes_;
    if (is_nearly_whole(page_bytes_)) page_bytes_ = whole_huge_pages(page_bytes_);
}

void KvCache::check_length(int64_t length, const char* what) const {
    if (length < 0 || length > length_)
        throw std::invalid_argument("cannot " + std::string(what) + " a KvCache of length " + std::to_string(length_) +
                                    " to " + std::to_string(length));
}

void KvCache::truncate(int64_t length) {
    check_length(length, "truncate");
    length_ = length;
    const int64_t pages = pages_for(length);
    if (pages < static_cast<int64_t>(pages_.size())) {
        pages_.resize(pages);
        blocks_.resize(pages * page_blocks_);
    }
}

void KvCache::grow(int64_t n) {
    for (int64_t page = length_ / page_positions(), end = pages_for(length_ + n); page < end; page++) {
        if (page == static_cast<int64_t>(pages_.size()))
            set_page(page, std::make_shared<Reservation>(page_bytes_));
        else if (pages_[page].use_count() > 1)  // only the page that length() stands in can be there already
            set_page(page, copy_of(page, length_ - page * page_positions()));
    }
}

void KvCache::fill(int64_t n) {
    if (length_ != 0 || n < 0 || n > shape_.capacity)
        throw std::invalid_argument("only an empty KvCache is filled, with at most its capacity");
    grow(n);
    for (const auto& page : pages_) std::memset(page->data(), 0, page_bytes_);
    length_ = n;
}

std::unique_ptr<KvCache> KvCache::fork(int64_t length) const {
    check_length(length, "fork");
    auto other = std::make_unique<KvCache>(shape_);
    const int64_t full = length / page_positions(), rest = length % page_positions();
    for (int64_t page = 0; page < full; page++) other->set_page(page, pages_[page]);
    if (rest) other->set_page(full, copy_of(full, rest));
    other->length_ = length;
    return other;
}

void KvCache::set_page(int64_t index, std::shared_ptr<Reservation> page) {
    pages_.reserve(index + 1);
    blocks_.reserve((index + 1) * page_blocks_);  // the last that may throw
    pages_.resize(std::max<size_t>(pages_.size(), index + 1));
    blocks_.resize(pages_.size() * page_blocks_);
    for (int64_t i = 0; i < page_blocks_; i++) blocks_[index * page_blocks_ + i] = page->data() + i * head_bytes_;
    pages_[index] = std::move(page);
}

std::shared_ptr<Reservation> KvCache::copy_of(int64_t index, int64_t positions) const {
    auto page = std::make_shared<Reservation>(page_bytes_);
    const int64_t step = page_blocks_ * head_bytes_, used = (positions + kKvBlock - 1) / kKvBlock * head_bytes_;
    for (int64_t head = 0; head < shape_.layers * shape_.kv_heads; head++)
        std::memcpy(page->data() + head * step, pages_[index]->data() + head * step, used);
    return page;
}

void KvCache::store(const KernelTable& kernels, int64_t layer, int64_t head, int64_t position, const float* key,
                    const float* value, uint16_t* scratch) const {
    uint8_t *to_keys = keys(layer, head, position), *to_values = values(layer, head, position);
    const int64_t dim = shape_.head_dim, at = position % kKvBlock;
    if (is_codes(shape_.type)) {
        store_codes(code_attention_kernels(kernels.tier), to_keys, to_values, at, key, value, reinterpret_cast<int16_t*>(scratch));
        return;
    }
    if (shape_.type == KvType::fp32) {
        for (int64_t d = 0; d < dim; d++) reinterpret_cast<float*>(to_keys)[d * kKvBlock + at] = key[d];
        std::memcpy(reinterpret_cast<float*>(to_values) + at * value_stride_, value, dim * sizeof(float));
        return;
    }
    const auto convert = shape_.type == KvType::fp16 ? kernels.vector.to_fp16 : kernels.vector.to_bf16;
    convert(key, scratch, dim);
    for (int64_t d = 0; d < dim; d++) reinterpret_cast<uint16_t*>(to_keys)[d * kKvBlock + at] = scratch[d];
    convert(value, reinterpret_cast<uint16_t*>(to_values) + at * value_stride_, dim);
}

// A key's scale tells of a value that is not finite, too: weights of values are integers, which could not.
void KvCache::store_codes(const CodeAttentionKernels& kernels, uint8_t* to_keys, uint8_t* to_values, int64_t at, const float* key,
                          const float* value, int16_t* scratch) const {
    const int64_t dim = shape_.head_dim;
    const float most = most_code(shape_.type);
    int16_t *key_codes = scratch, *value_codes = scratch + dim;
    const float key_scale = kernels.to_codes(key, dim, most, key_codes), value_scale = kernels.to_codes(value, dim, most, value_codes);
    const auto put = [&](auto code) {
        using Code = decltype(code);
        Code* keys = reinterpret_cast<Code*>(to_keys) + 2 * at;
        for (int64_t d = 0; d < dim; d++) keys[d / 2 * 2 * kKvBlock + d % 2] = static_cast<Code>(key_codes[d]);
        Code* values = reinterpret_cast<Code*>(to_values) + at / 2 * 2 * value_stride_ + at % 2;
        for (int64_t d = 0; d < dim; d++) values[2 * d] = static_cast<Code>(value_codes[d]);
    };
    if (shape_.type == KvType::int8)
        put(int8_t{});
    else
        put(int16_t{});
    const_cast<float*>(key_scales(to_keys))[at] = std::isfinite(value_scale) ? key_scale : value_scale;
    const_cast<float*>(value_scales(to_values))[at] = value_scale;
}

int64_t KvCache::bytes(const std::vector<const KvCache*>& caches) {
    std::unordered_set<const Reservation*> seen;
    int64_t total = 0;
    for (const KvCache* cache : caches)
        for (const auto& page : cache->pages_)
            if (seen.insert(page.get()).second) total += static_cast<int64_t>(page->bytes());
    return total;
}

}  // namespace lowbit
