// Attention over the KV caches: rotation, storing, and how the work on blocks of keys is shared and put together.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention_blocks.h"
#include "rope.h"

namespace lowbit {
namespace {

constexpr int64_t kQueryRows = 32;  // (token, head) rows that share a pass over the keys

// Steps cut their keys into spans, so that all threads find work where there are few kv heads: into longer ones further on, where
// there are enough of them, because each begins and ends with work of its own. The cut does not depend on the number of threads
// or on the length of the context, and so neither does the result.
struct SpansFrom {
    int64_t index, position, length;
};
constexpr SpansFrom kSpans[] = {{10, 8192, 2048}, {4, 2048, 1024}, {0, 0, 512}};

int64_t span_begin(int64_t index) {
    for (const SpansFrom& s : kSpans)
        if (index >= s.index) return s.position + (index - s.index) * s.length;
    return 0;
}

// Spans that positions up to `end` are in.
int64_t spans_up_to(int64_t end) {
    for (const SpansFrom& s : kSpans)
        if (end > s.position) return s.index + (end - s.position + s.length - 1) / s.length;
    return 0;
}

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

// The finished softmax of a block of queries into the input of the output projection.
void finish(const AttentionContext& c, const Block& b, const Softmax& x) {
    const int64_t group = c.spec.heads / c.spec.kv_heads, dim = c.spec.head_dim, column = b.head * group * dim;
    const int64_t width = b.segment.cache->value_stride();
    for (int64_t t = 0; t < b.tokens; t++) {
        float* to = c.scratch.attended.row(b.first_row + t) + column;
        for (int64_t h = 0; h < group; h++) {
            const int64_t r = t * group + h;
            const float inverse = 1.0f / x.rows[r].sum;
            for (int64_t d = 0; d < dim; d++) to[h * dim + d] = x.out[r * width + d] * inverse;
        }
        if (attended_is_quantized(c.spec))
            quantize_columns(c.kernels, c.attended, b.first_row + t, column, column + group * dim);
    }
}

// x += y: two softmaxes of the same queries over different keys.
void merge(const Softmax& x, const Softmax& y, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; r++) {
        RowSoftmax& into = x.rows[r];
        const RowSoftmax& from = y.rows[r];
        if (from.sum == 0) continue;  // a span before the window
        const bool first = into.sum == 0;
        const float top = first ? from.largest : std::max(into.largest, from.largest);
        const float keep = first ? 0.0f : std::exp(into.largest - top), take = std::exp(from.largest - top);
        for (int64_t d = 0; d < width; d++)
            x.out[r * width + d] = x.out[r * width + d] * keep + y.out[r * width + d] * take;
        into.sum = into.sum * keep + from.sum * take;
        into.largest = top;
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
    return block_floats(s, rows) + Softmax::floats(rows, s.head_dim + kPanelRows);
}

int64_t plan_spans(const ModelSpec& spec, int64_t part_tokens, Segment& segment, int64_t floats) {
    const int64_t group = spec.heads / spec.kv_heads, end = segment.first_position + segment.rows;
    if (part_tokens * group > query_rows(spec) || spans_up_to(end) <= 1) return 0;
    segment.spans = spans_up_to(end);
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
                  const float* balance = cache.shape().type == KvType::int8 ? c.weights.key_balance.data() : nullptr;
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
                      cache.store(c.kernels, c.layer, head, info.position, x, value + head * dim, halves);
                  }
              });
}

void attend(const Team& team, const AttentionContext& c) {
    const int64_t group = c.spec.heads / c.spec.kv_heads, most = query_rows(c.spec);
    const int64_t tokens = std::max<int64_t>(1, most / group);
    float* scratch = c.scratch.attention + team.id() * c.scratch.attention_stride;
    float* own = scratch + block_floats(c.spec, most);
    int64_t unit = 0;  // dealt out in turn, because later tokens of a prompt see more keys
    const auto mine = [&] { return unit++ % team.size() == team.id(); };
    const int64_t heads = c.spec.kv_heads;
    for (const Segment& segment : c.chunk.segments) {
        for (int64_t i = 0; i < segment.spans * heads; i++)
            if (mine()) {
                const int64_t then = i + team.size();
                const uint8_t* next =
                    then < segment.spans * heads ? segment.cache->keys(c.layer, then % heads, span_begin(then / heads)) : nullptr;
                // In memory that is near: what spans leave has been swept out of the caches since the last layer.
                const Softmax x(own, segment.rows * group, segment.cache->value_stride());
                accumulate(c, {segment, segment.first_row, segment.rows, i % heads, next}, span_begin(i / heads),
                           span_begin(i / heads + 1), scratch, x);
                std::memcpy(span_of(c, segment, i % heads, i / heads).out, own,
                            Softmax::floats(segment.rows * group, segment.cache->value_stride()) * sizeof(float));
            }
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
