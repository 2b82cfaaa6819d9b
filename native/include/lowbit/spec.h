// ModelSpec and EncoderSpec: what differs between decoder and between encoder families, as plain data. The mirror of
// backend/lowbit/models/_spec.py, which has the meaning of each field and the family lists; bindings copy one into the
// other field by field.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "lowbit/activation.h"

namespace lowbit {

enum class NormKind : uint8_t { rms = 0, layer = 1 };
// Where norms stand: pre (x + f(norm x)), post (norm(x + f x)), sandwich (x + norm'(f(norm x))).
enum class NormPlace : uint8_t { pre = 0, post = 1, sandwich = 2 };
// Residual wiring: sequential (attention, then MLP), parallel with one shared norm (GPT-J, Falcon-7B, Cohere), parallel with
// one norm each (GPT-NeoX, Falcon-40B).
enum class Residual : uint8_t { sequential = 0, parallel_shared = 1, parallel_separate = 2 };
enum class RopeKind : uint8_t { half = 0, interleaved = 1 };  // pairs (i, i + dim/2), or (2i, 2i + 1)

struct Rope {
    RopeKind kind = RopeKind::half;
    int dim = 0;                         // rotated share of a head, the rest passes through
    std::vector<float> inv_freq;         // [dim/2]
    std::vector<float> inv_freq_long;    // [dim/2] or empty: used when the session's context exceeds long_from (Phi-3 longrope)
    int64_t long_from = 0;
    float scale = 1.0f, scale_long = 1.0f;  // multiplies cos and sin (YaRN, longrope)
};

struct ModelSpec {
    std::string family;
    int64_t vocab_size = 0, hidden_size = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn_size = 0, context = 0;

    NormKind norm = NormKind::rms;
    NormPlace norm_place = NormPlace::pre;
    float norm_eps = 1e-5f;
    float norm_weight_offset = 0.0f;     // Gemma: 1
    bool final_norm = true;
    NormKind qk_norm = NormKind::rms;    // kind of the norms of q and k where their weights exist
    bool qk_norm_whole = false;          // over all heads at once (MPT) instead of per head
    Residual residual = Residual::sequential;
    float residual_scale = 1.0f;

    float embedding_scale = 1.0f;
    int learned_position_offset = 0;     // OPT: 2; used where the tensor "position_embedding" exists

    std::vector<Rope> ropes;
    std::vector<int> layer_rope;         // [layers], index into ropes or -1
    std::vector<float> alibi_slopes;     // [heads] or empty
    float attention_scale = 0.0f;        // 0: 1 / sqrt(head_dim)
    float attention_softcap = 0.0f;      // 0 = none
    std::vector<float> layer_attention_scale;  // [layers] factor on attention_scale, or empty
    int64_t attention_logn_from = 0;     // n > 0: q of position p is multiplied by max(1, log(p + 1) / log(n)) (Qwen 1)
    std::vector<int64_t> layer_window;   // [layers], 0 = full attention, else how many latest positions are seen
    float clip_qkv = 0.0f;               // MPT; 0 = none

    bool gated = true;
    Activation activation = Activation::silu;

    bool tied_head = false;
    float logit_scale = 1.0f;
    float logit_softcap = 0.0f;
};

// How the rows of a text become one: the first token's, the mean, the maximum, the sum divided by the root of the
// length, the last token's, the mean weighted by position (1, 2, ...).
enum class Pooling : uint8_t { cls = 0, mean = 1, max = 2, mean_sqrt_len = 3, last = 4, weighted_mean = 5 };
enum class HeadActivation : uint8_t { tanh = 0, relu = 1, gelu = 2 };

struct EncoderSpec {
    std::string family;
    int64_t vocab_size = 0, hidden_size = 0, layers = 0, heads = 0, head_dim = 0, ffn_size = 0, context = 0;

    NormPlace norm_place = NormPlace::post;  // post or pre; all norms are layer norms
    float norm_eps = 1e-12f;
    bool final_norm = false;

    int64_t token_types = 0;
    int learned_position_offset = 0;         // row of the first position, where "position_embedding" exists
    std::vector<Rope> ropes;
    std::vector<int> layer_rope;             // [layers], index into ropes or -1
    std::vector<int64_t> layer_reach;        // [layers] or empty: how far a token sees to each side, 0 = everything
    std::vector<int> relative_buckets;       // [2 d + 1] or empty: row of "relative_bias" for key - query = -d..d

    bool gated = false;
    Activation activation = Activation::gelu;

    int64_t labels = 0;                      // columns of the classification head, 0 = none
    Pooling head_pooling = Pooling::cls;
    HeadActivation head_activation = HeadActivation::tanh;
};

}  // namespace lowbit
