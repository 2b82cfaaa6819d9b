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

// One head of one text.
struct Unit {
    const TextRows& text;
    int64_t head, first_query, queries;
};

class HeadAttention {
public:
    HeadAttention(const EncoderEngine& e, int64_t layer, const LinearInput& attended, int64_t longest, float* scratch)
        : e_(e),
          s_(e.spec),
          v_(e.kernels.vector),
          attended_(attended),
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
    // One head's part of q, k or v of a row, with bias.
    void load(const TextRows& text, int64_t position, int64_t which, int64_t head, float* to) const {
        const int64_t column = (which * s_.heads + head) * dim_;
        std::memcpy(to, e_.scratch.qkv.row(text.first_row + position) + column, dim_ * sizeof(float));
        if (qkv_bias_) v_.add(to, qkv_bias_ + column, 1.0f, dim_);
    }

    void load_keys_and_values(const Unit& u) {
        for (int64_t t = 0; t < u.text.rows; t += kStrip) {
            const int64_t count = std::min(kStrip, u.text.rows - t);
            for (int64_t i = 0; i < count; i++) {
                float* key = rows_ + i * dim_;
                load(u.text, t + i, 1, u.head, key);
                if (rope_ >= 0) rotate(s_.ropes[rope_], e_.positions.at(s_, rope_, t + i), key);
                load(u.text, t + i, 2, u.head, values_ + (t + i) * width_);
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
            load(u.text, first + r, 0, u.head, q);
            if (rope_ >= 0) rotate(s_.ropes[rope_], e_.positions.at(s_, rope_, first + r), q);
            for (int64_t d = 0; d < dim_; d++) q[d] *= scale_;
        }
        std::memset(out_, 0, count * width_ * sizeof(float));
        std::memset(sums_, 0, count * sizeof(float));
        const int64_t begin = reach_ ? std::max<int64_t>(0, first - reach_) : 0,
                      end = reach_ ? std::min(u.text.rows, first + count + reach_) : u.text.rows;
        for (int64_t span = begin / kKvBlock * kKvBlock; span < end; span += kSpanBlocks * kKvBlock)
            attend_span(u, first, count, span, std::min(end, span + kSpanBlocks * kKvBlock));
        const int64_t column = u.head * dim_;
        for (int64_t r = 0; r < count; r++) {
            const int64_t row = u.text.first_row + first + r;
            float* to = e_.scratch.attended.row(row) + column;
            const float inverse = 1.0f / sums_[r];
            for (int64_t d = 0; d < dim_; d++) to[d] = out_[r * width_ + d] * inverse;
            if (dim_ % kActivationK == 0) quantize_columns(e_.kernels, attended_, row, column, column + dim_);
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
    const LinearInput& attended_;
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

bool attend(const Team& team, const EncoderEngine& e, const TextChunk& chunk, int64_t layer,
            const LinearInput& attended) {
    const EncoderSpec& s = e.spec;
    HeadAttention head_attention(e, layer, attended, e.scratch.longest,
                                 e.scratch.attention + team.id() * e.scratch.attention_stride);
    // Where heads alone do not occupy the team, queries are split too, at the price of loading the keys again.
    const int64_t heads = static_cast<int64_t>(chunk.texts.size()) * s.heads;
    const int64_t parts = (2 * team.size() + heads - 1) / heads;
    int64_t unit = 0;
    for (const TextRows& text : chunk.texts) {
        const int64_t step = round_up((text.rows + parts - 1) / parts, kQueryRows);
        for (int64_t head = 0; head < s.heads; head++)
            for (int64_t first = 0; first < text.rows; first += step)
                if (unit++ % team.size() == team.id())
                    head_attention.run({text, head, first, std::min(step, text.rows - first)});
    }
    return s.head_dim % kActivationK == 0;
}

}  // namespace lowbit
