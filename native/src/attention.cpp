// Attention over the KV caches: rotation, storing, and a softmax that runs over blocks of keys, so that its scratch
// does not grow with the context (Milakov & Gimelshein 2018, "Online normalizer calculation for softmax").
#include <algorithm>
#include <cmath>
#include <cstring>

#include "forward.h"
#include "rope.h"

namespace lowbit {
namespace {

constexpr int64_t kQueryRows = 32;  // (token, head) rows that share a pass over the keys

// Steps cut their keys into spans of so many positions, so that all threads find work where there are few kv heads. The
// cut does not depend on the number of threads, and so neither does the result.
constexpr int64_t kSpan = 512;

int64_t query_rows(const ModelSpec& s) { return std::max(kQueryRows, s.heads / s.kv_heads); }

void norm_head(const ModelSpec& s, const VectorKernels& v, const float* weight, int64_t n, float* x) {
    if (s.qk_norm == NormKind::rms)
        v.rms_norm(x, weight, s.norm_weight_offset, s.norm_eps, n, x);
    else
        v.layer_norm(x, weight, nullptr, s.norm_weight_offset, s.norm_eps, n, x);
}

float query_scale(const ModelSpec& s, int64_t layer, int64_t position) {
    float scale = s.attention_scale != 0 ? s.attention_scale : 1.0f / std::sqrt(static_cast<float>(s.head_dim));
    if (!s.layer_attention_scale.empty()) scale *= s.layer_attention_scale[layer];
    if (s.attention_logn_from > 1 && position >= s.attention_logn_from)
        scale *= std::log(static_cast<float>(position + 1)) / std::log(static_cast<float>(s.attention_logn_from));
    return scale;
}

// Softmax over the keys seen so far, per query row: sums of e^(score - largest), and of the values weighted so.
struct Softmax {
    float* out;      // [rows][width], width = the cache's value stride
    float* largest;  // [rows], meaningful where sums is not 0
    float* sums;     // [rows]

    Softmax(float* memory, int64_t rows, int64_t width)
        : out(memory), largest(memory + rows * width), sums(memory + rows * width + rows) {}
    static int64_t floats(int64_t rows, int64_t width) { return rows * (width + 2); }
};

// The queries of `tokens` rows of a segment from `first_row` that use kv head `head`.
struct Block {
    const Segment& segment;
    int64_t first_row, tokens, head;

    int64_t position() const { return segment.first_position + first_row - segment.first_row; }
};

// Scores of one query row -> weights of its keys [from, to) of a block of `count`, zero for the others.
void weigh(const AttentionContext& c, int64_t query_head, int64_t distance, float* row, int64_t from, int64_t to,
           int64_t count, float* out, int64_t width, float& largest, float& sum) {
    const ModelSpec& s = c.spec;
    if (from >= to) {
        std::fill(row, row + count, 0.0f);
        return;
    }
    if (s.attention_softcap != 0)
        for (int64_t t = from; t < to; t++) row[t] = s.attention_softcap * std::tanh(row[t] / s.attention_softcap);
    if (!s.alibi_slopes.empty())
        for (int64_t t = from; t < to; t++) row[t] += s.alibi_slopes[query_head] * static_cast<float>(t - distance);
    float top = c.kernels.vector.max(row + from, to - from);
    if (sum != 0) {
        top = std::max(top, largest);
        if (top != largest) {  // seldom, far into a context
            const float shrink = std::exp(largest - top);
            sum *= shrink;
            for (int64_t d = 0; d < width; d++) out[d] *= shrink;
        }
    }
    largest = top;
    sum += c.kernels.vector.exp_sum(row + from, top, to - from);
    std::fill(row, row + from, 0.0f);
    std::fill(row + to, row + count, 0.0f);
}

// The next block of keys and values stands where no hardware prefetcher looks for it: behind those of all other heads
// and layers.
// So it is fetched while this one is computed, a little at a time: more at once than the core can have under way would wait.
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

constexpr int64_t kProductRows = 4;  // queries that the kernels multiply at once

// The softmax of a block of queries over the keys at positions [begin, end), begin on a border of the cache's blocks.
void accumulate(const AttentionContext& c, const Block& b, int64_t begin, int64_t end, float* scratch,
                const Softmax& x) {
    const ModelSpec& s = c.spec;
    const VectorKernels& v = c.kernels.vector;
    const KvCache& cache = *b.segment.cache;
    const int64_t group = s.heads / s.kv_heads, dim = s.head_dim, width = cache.value_stride(), rows = b.tokens * group;
    float *q = scratch, *scores = q + rows * dim;
    for (int64_t t = 0; t < b.tokens; t++)
        std::memcpy(q + t * group * dim, c.scratch.qkv.row(b.first_row + t) + b.head * group * dim,
                    group * dim * sizeof(float));
    std::memset(x.out, 0, rows * width * sizeof(float));
    std::memset(x.sums, 0, rows * sizeof(float));

    const int64_t window = s.layer_window.empty() ? 0 : s.layer_window[c.layer];
    const int64_t first = b.position(), last = std::min(end, first + b.tokens) - 1;
    if (window) begin = std::max(begin, (first - window + 1) / kKvBlock * kKvBlock);
    for (int64_t block = begin; block <= last; block += kKvBlock) {
        const int64_t count = std::min<int64_t>(kKvBlock, last + 1 - block);
        const uint8_t *keys = cache.keys(c.layer, b.head, block), *values = cache.values(c.layer, b.head, block);
        const bool more = block + kKvBlock <= last;
        Prefetch ahead(more ? cache.keys(c.layer, b.head, block + kKvBlock) : keys, more ? cache.head_bytes() : 0,
                       rows + (rows + kProductRows - 1) / kProductRows * 2);
        for (int64_t r = 0; r < rows; r += kProductRows) {
            ahead.next();
            v.attention_scores(q + r * dim, std::min(kProductRows, rows - r), keys, cache.shape().dtype, count, dim,
                               scores + r * kKvBlock);
        }
        for (int64_t r = 0; r < rows; r++) {
            ahead.next();
            const int64_t position = first + r / group;
            const int64_t from = window ? std::max<int64_t>(0, position - window + 1 - block) : 0;
            weigh(c, b.head * group + r % group, position - block, scores + r * kKvBlock, from,
                  std::min(count, position + 1 - block), count, x.out + r * width, width, x.largest[r], x.sums[r]);
        }
        for (int64_t r = 0; r < rows; r += kProductRows) {
            ahead.next();
            v.attention_values(scores + r * kKvBlock, std::min(kProductRows, rows - r), values, cache.shape().dtype, count,
                               width, x.out + r * width);
        }
    }
}

// The finished softmax of a block of queries into the input of the output projection.
void finish(const AttentionContext& c, const Block& b, const Softmax& x) {
    const int64_t group = c.spec.heads / c.spec.kv_heads, dim = c.spec.head_dim, column = b.head * group * dim;
    const int64_t width = b.segment.cache->value_stride();
    for (int64_t t = 0; t < b.tokens; t++) {
        float* to = c.scratch.attended.row(b.first_row + t) + column;
        for (int64_t h = 0; h < group; h++) {
            const int64_t r = t * group + h;
            const float inverse = 1.0f / x.sums[r];
            for (int64_t d = 0; d < dim; d++) to[h * dim + d] = x.out[r * width + d] * inverse;
        }
        if (attended_is_quantized(c.spec))
            quantize_columns(c.kernels, c.attended, b.first_row + t, column, column + group * dim);
    }
}

// x += y: two softmaxes of the same queries over different keys.
void merge(const Softmax& x, const Softmax& y, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; r++) {
        if (y.sums[r] == 0) continue;  // a span before the window
        const float top = x.sums[r] == 0 ? y.largest[r] : std::max(x.largest[r], y.largest[r]);
        const float keep = x.sums[r] == 0 ? 0.0f : std::exp(x.largest[r] - top), take = std::exp(y.largest[r] - top);
        for (int64_t d = 0; d < width; d++)
            x.out[r * width + d] = x.out[r * width + d] * keep + y.out[r * width + d] * take;
        x.sums[r] = x.sums[r] * keep + y.sums[r] * take;
        x.largest[r] = top;
    }
}

Softmax span_of(const AttentionContext& c, const Segment& segment, int64_t head, int64_t span) {
    const int64_t rows = segment.rows * (c.spec.heads / c.spec.kv_heads), width = segment.cache->value_stride();
    return {c.scratch.spans + segment.span_floats + (head * segment.spans + span) * Softmax::floats(rows, width), rows,
            width};
}

}  // namespace

int64_t attention_floats(const ModelSpec& s) {
    const int64_t rows = query_rows(s);
    return rows * (s.head_dim + kKvBlock) + Softmax::floats(rows, s.head_dim + kPanelRows);
}

int64_t plan_spans(const ModelSpec& spec, int64_t part_tokens, Segment& segment, int64_t floats) {
    const int64_t group = spec.heads / spec.kv_heads, end = segment.first_position + segment.rows;
    if (part_tokens * group > query_rows(spec) || end <= kSpan) return 0;
    segment.spans = (end + kSpan - 1) / kSpan;
    segment.span_floats = floats;
    return spec.kv_heads * segment.spans * Softmax::floats(segment.rows * group, segment.cache->value_stride());
}

void fill_ropes(const Team& team, const ModelSpec& spec, const Chunk& chunk, const RopeTables& tables) {
    const int64_t ropes = static_cast<int64_t>(spec.ropes.size());
    for_share(team, static_cast<int64_t>(chunk.rows.size()), ropes, 1, [&](int64_t row, int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) {
            const Rope& rope = spec.ropes[i];
            const bool long_context =
                !rope.inv_freq_long.empty() && chunk.rows[row].cache->shape().capacity > rope.long_from;
            const std::vector<float>& inv_freq = long_context ? rope.inv_freq_long : rope.inv_freq;
            const float scale = long_context ? rope.scale_long : rope.scale;
            fill_rope(inv_freq, scale, chunk.rows[row].position, tables.at(static_cast<int>(i), row));
        }
    });
}

void rotate_and_store(const Team& team, const AttentionContext& c) {
    const ModelSpec& s = c.spec;
    const VectorKernels& v = c.kernels.vector;
    const int64_t dim = s.head_dim, group = s.heads / s.kv_heads;
    const int rope_index = s.layer_rope.empty() ? -1 : s.layer_rope[c.layer];
    // A norm over all heads needs its row in one hand; else a kv head and its queries are a unit of work.
    uint16_t* halves = reinterpret_cast<uint16_t*>(c.scratch.attention + team.id() * c.scratch.attention_stride);
    const int64_t unit = s.qk_norm_whole ? s.kv_heads : 1;
    for_share(team, static_cast<int64_t>(c.chunk.rows.size()), s.kv_heads, unit,
              [&](int64_t row, int64_t first, int64_t last) {
                  const Row& info = c.chunk.rows[row];
                  const KvCache& cache = *info.cache;
                  float *q = c.scratch.qkv.row(row), *k = q + s.heads * dim, *value = k + s.kv_heads * dim;
                  if (s.clip_qkv != 0) {
                      const auto clip = [&](float* x, int64_t n) {
                          for (int64_t i = 0; i < n; i++)
                              x[i] = x[i] > s.clip_qkv ? s.clip_qkv : x[i] < -s.clip_qkv ? -s.clip_qkv : x[i];
                      };
                      clip(q + first * group * dim, (last - first) * group * dim);
                      clip(k + first * dim, (last - first) * dim);
                      clip(value + first * dim, (last - first) * dim);
                  }
                  if (s.qk_norm_whole) {
                      if (c.weights.q_norm) norm_head(s, v, c.weights.q_norm, s.heads * dim, q);
                      if (c.weights.k_norm) norm_head(s, v, c.weights.k_norm, s.kv_heads * dim, k);
                  }
                  const float scale = query_scale(s, c.layer, info.position);
                  const float* balance = cache.shape().dtype == DType::int8 ? c.weights.key_balance.data() : nullptr;
                  const float* table = rope_index >= 0 ? c.scratch.ropes.at(rope_index, row) : nullptr;
                  for (int64_t head = first * group; head < last * group; head++) {
                      float* x = q + head * dim;
                      if (c.weights.q_norm && !s.qk_norm_whole)
                          norm_head(s, v, c.weights.q_norm + (c.weights.q_norm_per_head ? head * dim : 0), dim, x);
                      if (table) rotate(s.ropes[rope_index], table, x);
                      for (int64_t d = 0; d < dim; d++) x[d] *= scale;
                      for (int64_t d = 0; balance && d < dim; d++) x[d] *= balance[head / group * dim + d];
                  }
                  for (int64_t head = first; head < last; head++) {
                      float* x = k + head * dim;
                      if (c.weights.k_norm && !s.qk_norm_whole)
                          norm_head(s, v, c.weights.k_norm + (c.weights.k_norm_per_head ? head * dim : 0), dim, x);
                      if (table) rotate(s.ropes[rope_index], table, x);
                      for (int64_t d = 0; balance && d < dim; d++) x[d] *= balance[(s.kv_heads + head) * dim + d];
                      cache.store(v, c.layer, head, info.position, x, value + head * dim, halves);
                  }
              });
}

void attend(const Team& team, const AttentionContext& c) {
    const int64_t group = c.spec.heads / c.spec.kv_heads, most = query_rows(c.spec);
    const int64_t tokens = std::max<int64_t>(1, most / group);
    float* scratch = c.scratch.attention + team.id() * c.scratch.attention_stride;
    float* own = scratch + most * (c.spec.head_dim + kKvBlock);
    int64_t unit = 0;  // dealt out in turn, because later tokens of a prompt see more keys
    const auto mine = [&] { return unit++ % team.size() == team.id(); };
    for (const Segment& segment : c.chunk.segments) {
        for (int64_t span = 0; span < segment.spans; span++)
            for (int64_t head = 0; head < c.spec.kv_heads; head++)
                if (mine())
                    accumulate(c, {segment, segment.first_row, segment.rows, head}, span * kSpan, (span + 1) * kSpan,
                               scratch, span_of(c, segment, head, span));
        if (segment.spans) continue;
        for (int64_t at = 0; at < segment.rows; at += tokens)
            for (int64_t head = 0; head < c.spec.kv_heads; head++)
                if (mine()) {
                    const Block block{segment, segment.first_row + at, std::min(tokens, segment.rows - at), head};
                    const Softmax x(own, block.tokens * group, segment.cache->value_stride());
                    accumulate(c, block, 0, block.position() + block.tokens, scratch, x);
                    finish(c, block, x);
                }
    }
}

void merge_spans(const Team& team, const AttentionContext& c) {
    const int64_t group = c.spec.heads / c.spec.kv_heads;
    int64_t unit = 0;
    for (const Segment& segment : c.chunk.segments)
        for (int64_t head = 0; segment.spans && head < c.spec.kv_heads; head++) {
            if (unit++ % team.size() != team.id()) continue;
            const Softmax x = span_of(c, segment, head, 0);
            for (int64_t span = 1; span < segment.spans; span++)
                merge(x, span_of(c, segment, head, span), segment.rows * group, segment.cache->value_stride());
            finish(c, {segment, segment.first_row, segment.rows, head}, x);
        }
}

}  // namespace lowbit
