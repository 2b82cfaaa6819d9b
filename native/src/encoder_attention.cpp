// Attention inside each text: a head of a text is a unit of work. Its keys are transposed and its values copied into
// blocks once; then the softmax runs over the blocks, so that scores need no more room for long texts (Milakov &
// Gimelshein 2018, "Online normalizer calculation for softmax").
#include <algorithm>
#include <cmath>
#include <cstring>

#include "encoder_forward.h"
#include "rope.h"

namespace lowbit {
namespace {

constexpr int64_t kQueryRows = 32;  // queries that share a pass over the keys

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
        largest_ = scores_ + kQueryRows * kKvBlock;
        sums_ = largest_ + kQueryRows;
        row_ = sums_ + kQueryRows;
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
        for (int64_t t = 0; t < u.text.rows; t++) {
            load(u.text, t, 1, u.head, row_);
            if (rope_ >= 0) rotate(s_.ropes[rope_], e_.positions.at(s_, rope_, t), row_);
            float* key = keys_ + t / kKvBlock * kKvBlock * dim_ + t % kKvBlock;
            for (int64_t d = 0; d < dim_; d++) key[d * kKvBlock] = row_[d];
            load(u.text, t, 2, u.head, values_ + t * width_);
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
        for (int64_t block = begin / kKvBlock * kKvBlock; block < end; block += kKvBlock) {
            const int64_t keys = std::min<int64_t>(kKvBlock, u.text.rows - block);
            v_.attention_scores(q_, count, keys_ + block * dim_, DType::fp32, keys, dim_, scores_);
            for (int64_t r = 0; r < count; r++) weigh(u, first + r, r, block, keys);
            v_.attention_values(scores_, count, values_ + block * width_, DType::fp32, keys, width_, out_);
        }
        const int64_t column = u.head * dim_;
        for (int64_t r = 0; r < count; r++) {
            const int64_t row = u.text.first_row + first + r;
            float* to = e_.scratch.attended.row(row) + column;
            const float inverse = 1.0f / sums_[r];
            for (int64_t d = 0; d < dim_; d++) to[d] = out_[r * width_ + d] * inverse;
            if (dim_ % kAtomK == 0) quantize_columns(e_.kernels, attended_, row, column, column + dim_);
        }
    }

    // Scores of query r (at `position`) with `keys` keys from `block` become weights; keys out of reach get none.
    void weigh(const Unit& u, int64_t position, int64_t r, int64_t block, int64_t keys) {
        const int64_t from = reach_ ? std::clamp<int64_t>(position - reach_ - block, 0, keys) : 0,
                      to = reach_ ? std::clamp<int64_t>(position + reach_ + 1 - block, 0, keys) : keys;
        float* row = scores_ + r * kKvBlock;
        if (from >= to) {
            std::fill(row, row + keys, 0.0f);
            return;
        }
        if (!s_.relative_buckets.empty()) {
            const int64_t size = static_cast<int64_t>(s_.relative_buckets.size()), far = size / 2;
            const float* bias = e_.weights.relative_bias.data() + u.head * size;
            for (int64_t t = from; t < to; t++) row[t] += bias[std::clamp(block + t - position, -far, far) + far];
        }
        float top = v_.max(row + from, to - from);
        if (sums_[r] != 0) {
            top = std::max(top, largest_[r]);
            const float shrink = std::exp(largest_[r] - top);
            if (shrink != 1.0f) {
                sums_[r] *= shrink;
                for (int64_t d = 0; d < dim_; d++) out_[r * width_ + d] *= shrink;
            }
        }
        largest_[r] = top;
        sums_[r] += v_.exp_sum(row + from, top, to - from);
        std::fill(row, row + from, 0.0f);
        std::fill(row + to, row + keys, 0.0f);
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
    float *keys_, *values_, *q_, *out_, *scores_, *largest_, *sums_, *row_;
};

}  // namespace

int64_t attention_floats(const EncoderSpec& s, int64_t longest) {
    const int64_t width = round_up(s.head_dim, kPanelRows);
    return round_up(longest, kKvBlock) * (s.head_dim + width) + kQueryRows * (s.head_dim + width + kKvBlock + 2) +
           width;
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
    return s.head_dim % kAtomK == 0;
}

}  // namespace lowbit
