// The sizes of channels are told by the weights alone: the bias of the projection (that of Qwen 2 is a hundred times
// larger in some channels than its keys' spread), the rows of the projection and the norm before it, and the norm of
// keys behind it. Channels that rotate into each other have one factor, so that rotation and factors commute.
#include "key_balance.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lowbit/pack.h"

namespace lowbit {
namespace {

constexpr float kSpread = 3.0f;     // standard deviations that a channel is taken to reach
constexpr float kLeast = 1.0f / 16;  // of the mean size: what seems smaller is not trusted to be

// Offset and reach of each channel for inputs that are a norm's output, or independent values of size 1.
std::vector<float> projected_sizes(const ModelSpec& s, const LayerWeights& w) {
    const int64_t channels = s.kv_heads * s.head_dim, hidden = s.hidden_size;
    const bool normed = s.norm_place != NormPlace::post;
    std::vector<float> row(hidden), sizes(channels);
    for (int64_t c = 0; c < channels; c++) {
        const int32_t id = static_cast<int32_t>(s.heads * s.head_dim + c);
        gather_rows(*w.qkv.weight, &id, 1, row.data(), hidden);
        double squares = 0, offset = w.qkv.bias ? w.qkv.bias[id] : 0.0;
        for (int64_t i = 0; i < hidden; i++) {
            const Norm& norm = w.attention_norm;
            const double gain = normed && norm.weight ? row[i] * (norm.weight[i] + s.norm_weight_offset) : row[i];
            squares += gain * gain;
            if (normed && norm.bias) offset += static_cast<double>(row[i]) * norm.bias[i];
        }
        sizes[c] = static_cast<float>(std::fabs(offset) + kSpread * std::sqrt(squares));
    }
    return sizes;
}

// One size for channels that rotate into each other.
void join_pairs(const Rope& rope, float* sizes) {
    const int64_t half = rope.dim / 2, step = rope.kind == RopeKind::half ? 1 : 2,
                  pair = rope.kind == RopeKind::half ? half : 1;
    for (int64_t i = 0; i < half; i++) {
        float &a = sizes[i * step], &b = sizes[i * step + pair];
        a = b = std::hypot(a, b);
    }
}

}  // namespace

std::vector<float> key_balance(const ModelSpec& s, const LayerWeights& w, int64_t layer) {
    std::vector<float> factors = projected_sizes(s, w);
    const int64_t dim = s.head_dim, channels = s.kv_heads * dim;
    for (int64_t c = 0; w.k_norm && c < channels; c++)
        factors[c] *= std::fabs(w.k_norm[w.k_norm_per_head ? c : c % dim] + s.norm_weight_offset);
    const int rope = s.layer_rope.empty() ? -1 : s.layer_rope[layer];
    for (int64_t head = 0; head < s.kv_heads; head++) {
        float* of = factors.data() + head * dim;
        if (rope >= 0) join_pairs(s.ropes[rope], of);
        const float mean = std::accumulate(of, of + dim, 0.0f) / static_cast<float>(dim);
        for (int64_t d = 0; d < dim; d++)
            of[d] = mean > 0 && std::isfinite(mean) ? std::max(of[d] / mean, kLeast) : 1.0f;
    }
    factors.resize(2 * channels);
    for (int64_t c = 0; c < channels; c++) factors[channels + c] = 1.0f / factors[c];
    return factors;
}

}  // namespace lowbit
