// A softmax that runs over blocks of keys, so that its scratch does not grow with the context (Milakov & Gimelshein 2018, "Online
// normalizer calculation for softmax"): over caches of floats in fp32, over caches of codes in integers.
#include "attention_blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "lowbit/code_tiles.h"

namespace lowbit {
namespace {

constexpr int64_t kFloatRows = 4;  // queries that the kernels multiply at once
constexpr int64_t kCodeRows = 8;
constexpr int64_t kWidenFrom = 9;  // query rows from which on codes of 8 bits are widened before use, not in every product
constexpr int64_t kTilesFrom = 12;  // from which on tiles are worth taking their bytes apart, by Intel's tables

// The next block of keys and values often stands where no hardware prefetcher looks for it: in another page of the cache. So it is
// fetched while this one is computed, a little at a time: more at once than the core can have under way would wait.
class Prefetch {
public:
    Prefetch(const uint8_t* data, int64_t bytes, int64_t times)
        : at_(data),
          end_(data + bytes),
          share_((bytes / times + kLine) / kLine * kLine) {}

    void next() {
        for (const uint8_t* stop = std::min(at_ + share_, end_); at_ < stop; at_ += kLine) __builtin_prefetch(at_, 0, 2);
    }

private:
    const uint8_t *at_, *end_;
    int64_t share_;
};

// What both ways of computing share: which blocks there are, and which keys of one a row sees.
struct Walk {
    const AttentionContext& c;
    const Block& b;
    int64_t group, window, first, begin, last;  // positions: of the first row, of the first and the last key

    Walk(const AttentionContext& context, const Block& block, int64_t from, int64_t end)
        : c(context),
          b(block),
          group(c.spec.heads / c.spec.kv_heads),
          window(c.spec.layer_window.empty() ? 0 : c.spec.layer_window[c.layer]),
          first(b.position()),
          begin(window ? std::max(from, (first - window + 1) / kKvBlock * kKvBlock) : from),
          last(std::min(end, first + b.tokens) - 1) {}

    int64_t rows() const { return b.tokens * group; }
    int64_t position(int64_t row) const { return first + row / group; }
    const float* query(int64_t row) const {
        return c.scratch.qkv.row(b.first_row + row / group) + (b.head * group + row % group) * c.spec.head_dim;
    }
    KeyRange range(int64_t row, int64_t block, int64_t count) const {
        const int64_t from = window ? std::max<int64_t>(0, position(row) - window + 1 - block) : 0;
        return {static_cast<int32_t>(from), static_cast<int32_t>(std::min(count, position(row) + 1 - block))};
    }
    // Scores of a row -> those that the softmax is of.
    void bias(int64_t row, int64_t block, KeyRange range, float* scores) const {
        const ModelSpec& s = c.spec;
        if (s.attention_softcap != 0)
            for (int64_t t = range.from; t < range.to; t++)
                scores[t] = s.attention_softcap * std::tanh(scores[t] / s.attention_softcap);
        if (!s.alibi_slopes.empty())
            for (int64_t t = range.from; t < range.to; t++)
                scores[t] += s.alibi_slopes[b.head * group + row % group] * static_cast<float>(t - (position(row) - block));
    }
    Prefetch ahead(const KvCache& cache, int64_t block, int64_t times) const {
        const bool more = block + kKvBlock <= last;
        return {cache.keys(c.layer, b.head, more ? block + kKvBlock : block), more ? cache.head_bytes() : 0, times};
    }
};

// Scores of one query row -> weights of its keys, zero for the others of a block of `count`.
void weigh(const VectorKernels& v, KeyRange range, float* row, int64_t count, float* out, int64_t width, RowSoftmax& x) {
    if (range.from >= range.to) {
        std::fill(row, row + count, 0.0f);
        return;
    }
    const int64_t n = range.to - range.from;
    float top = v.max(row + range.from, n);
    if (x.sum != 0) {
        top = std::max(top, x.largest);
        if (top != x.largest) {  // seldom, far into a context
            const float shrink = std::exp(x.largest - top);
            x.sum *= shrink;
            for (int64_t d = 0; d < width; d++) out[d] *= shrink;
        }
    }
    x.largest = top;
    x.sum += v.exp_sum(row + range.from, top, n);
    std::fill(row, row + range.from, 0.0f);
    std::fill(row + range.to, row + count, 0.0f);
}

void accumulate_floats(const Walk& walk, const KvCache& cache, float* scratch, const Softmax& x) {
    const AttentionContext& c = walk.c;
    const VectorKernels& v = c.kernels.vector;
    const int64_t dim = c.spec.head_dim, width = cache.value_stride(), rows = walk.rows();
    const DType dtype = float_type(cache.shape().type);
    float *q = scratch, *scores = q + rows * dim;
    for (int64_t r = 0; r < rows; r++) std::memcpy(q + r * dim, walk.query(r), dim * sizeof(float));
    for (int64_t block = walk.begin; block <= walk.last; block += kKvBlock) {
        const int64_t count = std::min<int64_t>(kKvBlock, walk.last + 1 - block);
        const uint8_t *keys = cache.keys(c.layer, walk.b.head, block), *values = cache.values(c.layer, walk.b.head, block);
        Prefetch ahead = walk.ahead(cache, block, rows + (rows + kFloatRows - 1) / kFloatRows * 2);
        for (int64_t r = 0; r < rows; r += kFloatRows) {
            ahead.next();
            v.attention_scores(q + r * dim, std::min(kFloatRows, rows - r), keys, dtype, count, dim, scores + r * kKvBlock);
        }
        for (int64_t r = 0; r < rows; r++) {
            ahead.next();
            const KeyRange range = walk.range(r, block, count);
            walk.bias(r, block, range, scores + r * kKvBlock);
            weigh(v, range, scores + r * kKvBlock, count, x.out + r * width, width, x.rows[r]);
        }
        for (int64_t r = 0; r < rows; r += kFloatRows) {
            ahead.next();
            v.attention_values(scores + r * kKvBlock, std::min(kFloatRows, rows - r), values, dtype, count, width,
                               x.out + r * width);
        }
    }
}

// Scratch of accumulate_codes; everything begins on a line of the cache, so that no vector crosses one.
struct CodeScratch {
    int16_t *q, *weights, *keys, *values;  // keys and values of a block, widened
    float *q_scales, *scores;
    uint8_t *q_bytes, *weight_bytes, *key_bytes, *value_bytes;  // for tiles; those of keys and values in the place of wide codes
    int64_t floats = 0;

    CodeScratch(float* memory, int64_t rows, int64_t key_rows, int64_t value_stride) {
        const auto take = [&](int64_t bytes) {
            float* at = memory + floats;
            floats += round_up(bytes, kLine) / static_cast<int64_t>(sizeof(float));
            return at;
        };
        const auto take_codes = [&](int64_t n) { return reinterpret_cast<int16_t*>(take(n * 2)); };
        const auto take_bytes = [&](int64_t n) { return reinterpret_cast<uint8_t*>(take(n)); };
        q = take_codes(rows * key_rows);
        weights = take_codes(kMostRows * kKvBlock);
        key_bytes = take_bytes(split_lines_bytes(KvType::int16, key_rows, kKvBlock));
        value_bytes = take_bytes(split_lines_bytes(KvType::int16, kKvBlock, value_stride));
        keys = reinterpret_cast<int16_t*>(key_bytes);
        values = reinterpret_cast<int16_t*>(value_bytes);
        q_scales = take(rows * 4);
        scores = take(kMostRows * kKvBlock * 4);
        q_bytes = take_bytes(split_rows_bytes(rows, key_rows));
        weight_bytes = take_bytes(split_rows_bytes(kMostRows, kKvBlock));
    }
    static constexpr int64_t kMostRows = std::max<int64_t>(kCodeRows, kTileBlockRows);  // that are scored together
};

// The tiles of a thread while it attends; none where rows are too few.
class Tiles {
public:
    Tiles(const KernelTable& kernels, int64_t rows) : kernels_(rows >= kTilesFrom ? kernels.code_tiles : nullptr) {
        if (kernels_) kernels_->begin();
    }
    ~Tiles() {
        if (kernels_) kernels_->end();
    }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

    const CodeTileKernels* operator->() const { return kernels_; }
    // Whether the next of `rows` rows go through them.
    bool take(int64_t rows) const { return kernels_ && rows >= kTilesFrom; }

private:
    const CodeTileKernels* kernels_;
};

void accumulate_codes(const Walk& walk, const KvCache& cache, float* scratch, const Softmax& x) {
    const AttentionContext& c = walk.c;
    const CodeAttentionKernels& k = code_attention_kernels(c.kernels.tier);
    const int64_t dim = c.spec.head_dim, key_rows = cache.key_rows(), width = cache.value_stride(), rows = walk.rows();
    const CodeScratch s(scratch, rows, key_rows, width);
    for (int64_t r = 0; r < rows; r++) {
        s.q_scales[r] = k.to_codes(walk.query(r), dim, most_code(KvType::int16), s.q + r * key_rows);
        if (key_rows != dim) s.q[r * key_rows + dim] = 0;
    }
    const Tiles tiles(c.kernels, rows);
    if (tiles.take(rows)) tiles->split_rows(s.q, rows, key_rows, s.q_bytes);
    for (int64_t block = walk.begin; block <= walk.last; block += kKvBlock) {
        const int64_t count = std::min<int64_t>(kKvBlock, walk.last + 1 - block);
        const uint8_t *keys = cache.keys(c.layer, walk.b.head, block), *values = cache.values(c.layer, walk.b.head, block);
        const float *key_scales = cache.key_scales(keys), *value_scales = cache.value_scales(values);
        const void *key_codes = keys, *value_codes = values;
        KvType type = cache.shape().type;
        const uint8_t* next = block + kKvBlock <= walk.last ? cache.keys(c.layer, walk.b.head, block + kKvBlock) : walk.b.next;
        if (tiles.take(rows)) {
            tiles->split_lines(keys, type, key_rows, kKvBlock, s.key_bytes);
            tiles->split_lines(values, type, kKvBlock, width, s.value_bytes);
        } else if (type == KvType::int8 && rows >= kWidenFrom) {
            k.widen(reinterpret_cast<const int8_t*>(keys), key_rows * kKvBlock, s.keys);
            k.widen(reinterpret_cast<const int8_t*>(values), width * kKvBlock, s.values);
            key_codes = s.keys;
            value_codes = s.values;
            type = KvType::int16;
        }
        const uint8_t* next_values = next ? next + (values - keys) : nullptr;
        for (int64_t r = 0, n; r < rows; r += n) {
            const bool in_tiles = tiles.take(rows - r);
            n = std::min<int64_t>(in_tiles ? kTileBlockRows : kCodeRows, rows - r);
            KeyRange ranges[CodeScratch::kMostRows];
            if (in_tiles)
                tiles->scores(s.q_bytes + split_rows_bytes(r, key_rows), s.q_scales + r, n, s.key_bytes, type, key_scales, count, key_rows,
                              s.scores, next);
            else
                k.scores(s.q + r * key_rows, s.q_scales + r, n, key_codes, type, key_scales, count, key_rows, s.scores, next);
            for (int64_t i = 0; i < n; i++) {
                ranges[i] = walk.range(r + i, block, count);
                walk.bias(r + i, block, ranges[i], s.scores + i * kKvBlock);
            }
            k.softmax(s.scores, n, ranges, value_scales, x.rows + r, s.weights);
            if (in_tiles) {
                tiles->split_rows(s.weights, n, kKvBlock, s.weight_bytes);
                tiles->values(s.weight_bytes, n, s.value_bytes, type, width, x.rows + r, x.out + r * width, next_values);
            } else {
                k.values(s.weights, n, value_codes, type, count, width, x.rows + r, x.out + r * width, next_values);
            }
            next = next_values = nullptr;
        }
    }
}

}  // namespace

int64_t block_floats(const ModelSpec& s, int64_t rows) {
    const CodeScratch codes(nullptr, rows, round_up(s.head_dim, 2), round_up(s.head_dim, kPanelRows));
    return std::max(round_up(rows * (s.head_dim + kKvBlock), kLine), codes.floats);
}

void accumulate(const AttentionContext& c, const Block& b, int64_t begin, int64_t end, float* scratch, const Softmax& x) {
    const KvCache& cache = *b.segment.cache;
    const Walk walk(c, b, begin, end);
    std::memset(x.out, 0, walk.rows() * cache.value_stride() * sizeof(float));
    std::memset(x.rows, 0, walk.rows() * sizeof(RowSoftmax));
    (is_codes(cache.shape().type) ? accumulate_codes : accumulate_floats)(walk, cache, scratch, x);
}

}  // namespace lowbit
