// Attention inside each text: a head of a text is a unit of work, 32 queries a step of it, with the queries in lanes (kernels.h). Keys
// and values are read where the product left them; only keys that are rotated are copied. The softmax runs over spans of keys, so
// that scores need no more room for long texts (Milakov & Gimelshein 2018, "Online normalizer calculation for softmax").
// A bias of the keys adds the same to all scores of a query, which a softmax does not see; that of the values adds itself to a mean.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "encoder_forward.h"
#include "rope.h"

namespace lowbit {
namespace {

constexpr int64_t kSpan = 512;     // keys whose scores stand beside each other; texts up to 512 need no more
constexpr float kOutside = -1e30f;  // the score of a key out of reach

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
    HeadAttention(const EncoderEngine& e, int64_t layer, float* scratch)
        : e_(e),
          s_(e.spec),
          k_(e.kernels.query_lanes),
          dim_(s_.head_dim),
          scale_(1.0f / std::sqrt(static_cast<float>(s_.head_dim))),
          qkv_bias_(e.weights.layers[layer].qkv.bias),
          rope_(s_.layer_rope.empty() ? -1 : s_.layer_rope[layer]),
          reach_(s_.layer_reach.empty() ? 0 : s_.layer_reach[layer]) {
        q_ = scratch;
        out_ = q_ + dim_ * kQueryLanes;
        scores_ = out_ + dim_ * kQueryLanes;
        largest_ = scores_ + kSpan * kQueryLanes;
        sums_ = largest_ + kQueryLanes;
        shrink_ = sums_ + kQueryLanes;
        rotated_queries_ = shrink_ + kQueryLanes;
        rotated_keys_ = rotated_queries_ + kQueryLanes * dim_;
    }

    void run(const Unit& u) {
        Rows keys = rows(u, 1), values = rows(u, 2);
        if (rope_ >= 0) {
            rotate_rows(keys, bias(u, 1), 0, u.text.rows, rotated_keys_);
            keys = {rotated_keys_, dim_};
        }
        for (int64_t at = 0; at < u.queries; at += kQueryLanes)
            queries(u, keys, values, u.first_query + at, std::min<int64_t>(kQueryLanes, u.queries - at));
    }

private:
    // A matrix whose row i belongs to position i of the text.
    struct Rows {
        const float* data;
        int64_t stride;
        const float* at(int64_t position) const { return data + position * stride; }
    };

    static Rows rows(const Unit& u, int64_t which) { return {u.columns[which] + u.text.first_row * u.stride, u.stride}; }

    const float* bias(const Unit& u, int64_t which) const {
        return qkv_bias_ ? qkv_bias_ + (which * s_.heads + u.head) * dim_ : nullptr;
    }

    // to[i] = position first + i with its bias, rotated.
    void rotate_rows(const Rows& from, const float* bias, int64_t first, int64_t count, float* to) const {
        for (int64_t i = 0; i < count; i++, to += dim_) {
            std::memcpy(to, from.at(first + i), dim_ * sizeof(float));
            if (bias) e_.kernels.vector.add(to, bias, 1.0f, dim_);
            rotate(s_.ropes[rope_], e_.positions.at(s_, rope_, first + i), to);
        }
    }

    void queries(const Unit& u, const Rows& keys, const Rows& values, int64_t first, int64_t count) {
        if (rope_ >= 0) {
            rotate_rows(rows(u, 0), bias(u, 0), first, count, rotated_queries_);
            k_.from_rows(rotated_queries_, dim_, count, dim_, nullptr, scale_, q_);
        } else {
            k_.from_rows(rows(u, 0).at(first), u.stride, count, dim_, bias(u, 0), scale_, q_);
        }
        std::fill_n(out_, dim_ * kQueryLanes, 0.0f);
        std::fill_n(sums_, kQueryLanes, 0.0f);
        std::fill_n(largest_, kQueryLanes, kOutside);
        const int64_t begin = reach_ ? std::max<int64_t>(0, first - reach_) : 0,
                      end = reach_ ? std::min(u.text.rows, first + count + reach_) : u.text.rows;
        for (int64_t span = begin; span < end; span += kSpan) {
            const int64_t length = std::min(kSpan, end - span);
            k_.scores(q_, keys.at(span), keys.stride, length, dim_, scores_);
            if (!s_.relative_buckets.empty()) add_relative_bias(u.head, span - first, length);
            if (reach_) leave_out(span - first, length);
            k_.softmax(scores_, length, largest_, sums_, shrink_);
            k_.values(scores_, values.at(span), values.stride, length, dim_, shrink_, out_);
        }
        k_.to_rows(out_, sums_, count, dim_, bias(u, 2), u.out + (u.text.first_row + first) * u.out_stride, u.out_stride);
    }

    // Adds what belongs to the distance of key t and query r, `ahead` + t - r.
    void add_relative_bias(int64_t head, int64_t ahead, int64_t length) const {
        const int64_t size = static_cast<int64_t>(s_.relative_buckets.size()), far = size / 2;
        const float* bias = e_.weights.relative_bias.data() + head * size;
        for (int64_t t = 0; t < length; t++)
            for (int64_t r = 0; r < kQueryLanes; r++)
                scores_[t * kQueryLanes + r] += bias[std::clamp(ahead + t - r, -far, far) + far];
    }

    void leave_out(int64_t ahead, int64_t length) const {
        for (int64_t t = 0; t < length; t++)
            for (int64_t r = 0; r < kQueryLanes; r++)
                if (std::abs(ahead + t - r) > reach_) scores_[t * kQueryLanes + r] = kOutside;
    }

    const EncoderEngine& e_;
    const EncoderSpec& s_;
    const QueryLaneKernels& k_;
    const int64_t dim_;
    const float scale_;
    const float* qkv_bias_;
    const int rope_;
    const int64_t reach_;
    float *q_, *out_, *scores_, *largest_, *sums_, *shrink_, *rotated_queries_, *rotated_keys_;
};

}  // namespace

int64_t attention_floats(const EncoderSpec& s, int64_t longest) {
    const int64_t rotated = s.ropes.empty() ? 0 : kQueryLanes + longest;
    return kQueryLanes * (2 * s.head_dim + kSpan + 3) + rotated * s.head_dim;
}

void attend(const Team& team, const EncoderEngine& e, const TextChunk& chunk, int64_t layer) {
    const EncoderSpec& s = e.spec;
    const EncoderScratch& b = e.scratch;
    HeadAttention head_attention(e, layer, b.attention + team.id() * b.attention_stride);
    // Where heads alone do not occupy the team, queries are split too, at the price of loading the keys again.
    const int64_t heads = static_cast<int64_t>(chunk.texts.size()) * s.heads, inner = s.heads * s.head_dim;
    const int64_t parts = (2 * team.size() + heads - 1) / heads;
    int64_t unit = 0;
    for (const TextRows& text : chunk.texts) {
        const int64_t step = round_up((text.rows + parts - 1) / parts, kQueryLanes);
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
    HeadAttention head_attention(e, layer, b.attention);
    const int64_t dim = e.spec.head_dim, width = heads_together(e.spec) * dim;
    for (const TextRows& text : chunk.texts)
        for (int64_t head = 0; head < heads; head++) {
            float* q = b.qkv.data + head * dim;
            head_attention.run({text, first_head + head, 0, text.rows, {q, q + width, q + 2 * width}, b.qkv.stride, q, b.qkv.stride});
        }
}

}  // namespace lowbit
