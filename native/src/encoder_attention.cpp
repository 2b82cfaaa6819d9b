// Attention inside each text: a head of a text is a unit of work. Its keys are transposed and its values copied into
// blocks once; then the softmax runs over the blocks, so that scores need no more room for long texts (Milakov &
// Gimelshein 2018, "Online normalizer calculation for softmax").
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "encoder_forward.h"
#include "rope.h"

namespace lowbit {
namespace {

constexpr int64_t kQueryRows = 32;  // queries that share a pass over the keys
constexpr int64_t kStrip = 16;      // keys that are transposed together
constexpr int64_t kSpanBlocks = 8;  // blocks of keys whose scores stand beside each other; texts up to 512 need no more

// One head of one text: its columns in row 0 of the chunk, and where its rows of results go.
struct Unit {
    const TextRows& text;
    int64_t head, first_query, queries;
    const float* columns[3];  // q, k, v
    int64_t stride;
    float* out;
    int64_t out_stride;
};

class HeadAttention {
public:
    HeadAttention(const EncoderEngine& e, int64_t layer, int64_t longest, float* scratch)
        : e_(e),
          s_(e.spec),
          v_(e.kernels.vector),
          dim_(s_.head_dim),
          width_(round_up(s_.head_dim, kPanelRows)),
          scale_(1.0f / std::sqrt(static_cast<float>(s_.head_dim))),
          qkv_bias_(e.weights.layers[layer].qkv.bias),
          rope_(s_.layer_rope.empty() ? -1 : s_.layer_rope[layer]),
          reach_(s_.layer_reach.empty() ? 0 : s_.layer_reach[layer]) {
        const int64_t positions = round_up(longest, kKvBlock);
        keys_ = scratch;
        values_ = keys_ + positions * dim_;
        q_ = values_ + positions * width_;
        out_ = q_ + kQueryRows * dim_;
        scores_ = out_ + kQueryRows * width_;
        largest_ = scores_ + kSpanBlocks * kQueryRows * kKvBlock;
        sums_ = largest_ + kQueryRows;
        rows_ = sums_ + kQueryRows;
    }

    void run(const Unit& u) {
        load_keys_and_values(u);
        for (int64_t at = 0; at < u.queries; at += kQueryRows)
            queries(u, u.first_query + at, std::min(kQueryRows, u.queries - at));
    }

private:
    // The q, k or v of a position, with bias.
    void load(const Unit& u, int64_t position, int64_t which, float* to) const {
        std::memcpy(to, u.columns[which] + (u.text.first_row + position) * u.stride, dim_ * sizeof(float));
        if (qkv_bias_) v_.add(to, qkv_bias_ + (which * s_.heads + u.head) * dim_, 1.0f, dim_);
    }

    void load_keys_and_values(const Unit& u) {
        for (int64_t t = 0; t < u.text.rows; t += kStrip) {
            const int64_t count = std::min(kStrip, u.text.rows - t);
            for (int64_t i = 0; i < count; i++) {
                float* key = rows_ + i * dim_;
                load(u, t + i, 1, key);
                if (rope_ >= 0) rotate(s_.ropes[rope_], e_.positions.at(s_, rope_, t + i), key);
                load(u, t + i, 2, values_ + (t + i) * width_);
            }
            // A strip of keys at a time, so that what one of them writes is a whole cache line.
            float* to = keys_ + t / kKvBlock * kKvBlock * dim_ + t % kKvBlock;
            for (int64_t d = 0; d < dim_; d++)
                for (int64_t i = 0; i < kStrip; i++) to[d * kKvBlock + i] = rows_[i * dim_ + d];
        }
    }

    void queries(const Unit& u, int64_t first, int64_t count) {
        for (int64_t r = 0; r < count; r++) {
            float* q = q_ + r * dim_;
            load(u, first + r, 0, q);
            if (rope_ >= 0) rotate(s_.ropes[rope_], e_.positions.at(s_, rope_, first + r), q);
            for (int64_t d = 0; d < dim_; d++) q[d] *= scale_;
        }
        std::memset(out_, 0, count * width_ * sizeof(float));
        std::memset(sums_, 0, count * sizeof(float));
        const int64_t begin = reach_ ? std::max<int64_t>(0, first - reach_) : 0,
                      end = reach_ ? std::min(u.text.rows, first + count + reach_) : u.text.rows;
        for (int64_t span = begin / kKvBlock * kKvBlock; span < end; span += kSpanBlocks * kKvBlock)
            attend_span(u, first, count, span, std::min(end, span + kSpanBlocks * kKvBlock));
        for (int64_t r = 0; r < count; r++) {
            float* to = u.out + (u.text.first_row + first + r) * u.out_stride;
            const float inverse = 1.0f / sums_[r];
            for (int64_t d = 0; d < dim_; d++) to[d] = out_[r * width_ + d] * inverse;
        }
    }

    // Queries [first, first + count) with the keys [span, end), span being the start of a block.
    void attend_span(const Unit& u, int64_t first, int64_t count, int64_t span, int64_t end) {
        const int64_t blocks = (end - span + kKvBlock - 1) / kKvBlock;
        const auto keys_of = [&](int64_t b) { return std::min<int64_t>(kKvBlock, u.text.rows - span - b * kKvBlock); };
        const auto scores_of = [&](int64_t b) { return scores_ + b * kQueryRows * kKvBlock; };
        for (int64_t b = 0; b < blocks; b++)
            v_.attention_scores(q_, count, keys_ + (span + b * kKvBlock) * dim_, DType::fp32, keys_of(b), dim_,
                                scores_of(b));
        for (int64_t r = 0; r < count; r++) {
            const int64_t position = first + r;
            // Keys [from, to) of the span are within reach.
            const int64_t last = std::min(u.text.rows, span + blocks * kKvBlock) - span;
            const int64_t from = reach_ ? std::clamp<int64_t>(position - reach_ - span, 0, last) : 0,
                          to = reach_ ? std::clamp<int64_t>(position + reach_ + 1 - span, 0, last) : last;
            const auto each_block = [&](auto fn) {
                for (int64_t b = from / kKvBlock; b * kKvBlock < to; b++) {
                    const int64_t low = std::max<int64_t>(from - b * kKvBlock, 0),
                                  high = std::min<int64_t>(kKvBlock, to - b * kKvBlock);
                    fn(scores_of(b) + r * kKvBlock + low, high - low, span + b * kKvBlock + low);
                }
            };
            if (!s_.relative_buckets.empty())
                each_block(
                    [&](float* row, int64_t n, int64_t key) { add_relative_bias(u.head, key - position, n, row); });
            float top = sums_[r] != 0 ? largest_[r] : -std::numeric_limits<float>::infinity();
            each_block([&](float* row, int64_t n, int64_t) { top = std::max(top, v_.max(row, n)); });
            if (sums_[r] != 0 && top != largest_[r]) {
                const float shrink = std::exp(largest_[r] - top);
                sums_[r] *= shrink;
                for (int64_t d = 0; d < dim_; d++) out_[r * width_ + d] *= shrink;
            }
            largest_[r] = top;
            each_block([&](float* row, int64_t n, int64_t) { sums_[r] += v_.exp_sum(row, top, n); });
            if (from > 0 || to < last) clear_outside(r, from, to, last);
        }
        for (int64_t b = 0; b < blocks; b++)
            v_.attention_values(scores_of(b), count, values_ + (span + b * kKvBlock) * width_, DType::fp32, keys_of(b),
                                width_, out_);
    }

    void add_relative_bias(int64_t head, int64_t distance, int64_t n, float* row) const {
        const int64_t size = static_cast<int64_t>(s_.relative_buckets.size()), far = size / 2;
        const float* bias = e_.weights.relative_bias.data() + head * size;
        for (int64_t t = 0; t < n; t++) row[t] += bias[std::clamp(distance + t, -far, far) + far];
    }

    // Weights of query r for keys [0, from) and [to, last) of a span become zero.
    void clear_outside(int64_t r, int64_t from, int64_t to, int64_t last) {
        for (int64_t t = 0; t < last; t++)
            if (t < from || t >= to) scores_[t / kKvBlock * kQueryRows * kKvBlock + r * kKvBlock + t % kKvBlock] = 0.0f;
    }

    const EncoderEngine& e_;
    const EncoderSpec& s_;
    const VectorKernels& v_;
    const int64_t dim_, width_;
    const float scale_;
    const float* qkv_bias_;
    const int rope_;
    const int64_t reach_;
    float *keys_, *values_, *q_, *out_, *scores_, *largest_, *sums_, *rows_;
};

}  // namespace

int64_t attention_floats(const EncoderSpec& s, int64_t longest) {
    const int64_t width = round_up(s.head_dim, kPanelRows);
    return round_up(longest, kKvBlock) * (s.head_dim + width) +
           kQueryRows * (s.head_dim + width + kSpanBlocks * kKvBlock + 2) + kStrip * s.head_dim;
}

void attend(const Team& team, const EncoderEngine& e, const TextChunk& chunk, int64_t layer) {
    const EncoderSpec& s = e.spec;
    const EncoderScratch& b = e.scratch;
    HeadAttention head_attention(e, layer, b.longest, b.attention + team.id() * b.attention_stride);
    // Where heads alone do not occupy the team, queries are split too, at the price of loading the keys again.
    const int64_t heads = static_cast<int64_t>(chunk.texts.size()) * s.heads, inner = s.heads * s.head_dim;
    const int64_t parts = (2 * team.size() + heads - 1) / heads;
    int64_t unit = 0;
    for (const TextRows& text : chunk.texts) {
        const int64_t step = round_up((text.rows + parts - 1) / parts, kQueryRows);
        for (int64_t head = 0; head < s.heads; head++) {
            const int64_t column = head * s.head_dim;
            const float* q = b.qkv.data + column;
            for (int64_t first = 0; first < text.rows; first += step)
                if (unit++ % team.size() == team.id())
                    head_attention.run({text, head, first, std::min(step, text.rows - first), {q, q + inner, q + 2 * inner},
                                        b.qkv.stride, b.attended.data + column, b.attended.stride});
        }
    }
}

int64_t heads_together(const EncoderSpec& s) {
    int64_t heads = 1;
    while (heads < s.heads && heads * s.head_dim % kActivationK) heads++;
    return heads;
}

void attend_heads(const EncoderEngine& e, const TextChunk& chunk, int64_t layer, int64_t first_head, int64_t heads) {
    const EncoderScratch& b = e.scratch;
    HeadAttention head_attention(e, layer, b.longest, b.attention);
    const int64_t dim = e.spec.head_dim, width = heads_together(e.spec) * dim;
    for (const TextRows& text : chunk.texts)
        for (int64_t head = 0; head < heads; head++) {
            float* q = b.qkv.data + head * dim;
            head_attention.run({text, first_head + head, 0, text.rows, {q, q + width, q + 2 * width}, b.qkv.stride, q, b.qkv.stride});
        }
}

}  // namespace lowbit
