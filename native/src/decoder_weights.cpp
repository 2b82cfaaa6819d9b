#include "decoder_weights.h"

#include <stdexcept>

#include "buffers.h"

namespace lowbit {
namespace {

[[noreturn]] void fail(const ModelSpec& spec, const std::string& what) {
    throw std::invalid_argument(spec.family + " decoder: " + what);
}

// A norm of q or k: one weight for all heads, or one per head.
const float* head_norm(const ModelSpec& s, const Finder& find, const std::string& name, int64_t heads, bool& per_head) {
    const int64_t one = s.head_dim, all = heads * s.head_dim;
    const float* w = s.qk_norm_whole ? find.vector(name, {all}, true) : find.vector(name, {one, all}, true);
    per_head = w && heads > 1 && find.size(name) == all;
    return w;
}

}  // namespace

void check_spec(const ModelSpec& s) {
    const std::pair<const char*, int64_t> sizes[] = {
        {"vocab_size", s.vocab_size}, {"hidden_size", s.hidden_size}, {"layers", s.layers},     {"heads", s.heads},
        {"kv_heads", s.kv_heads},     {"head_dim", s.head_dim},       {"ffn_size", s.ffn_size},
    };
    for (const auto& [name, value] : sizes)
        if (value < 1 || value > (int64_t{1} << 31)) fail(s, std::string(name) + " is " + std::to_string(value));
    if (s.heads % s.kv_heads)
        fail(s, "heads (" + std::to_string(s.heads) + ") is not a multiple of kv_heads (" + std::to_string(s.kv_heads) +
                    ")");
    const auto per = [&](const char* name, size_t have, int64_t want) {
        if (have != 0 && static_cast<int64_t>(have) != want)
            fail(s, std::string(name) + " has " + std::to_string(have) + " entries, not " + std::to_string(want));
    };
    per("layer_rope", s.layer_rope.size(), s.layers);
    per("layer_window", s.layer_window.size(), s.layers);
    per("layer_attention_scale", s.layer_attention_scale.size(), s.layers);
    per("alibi_slopes", s.alibi_slopes.size(), s.heads);
    for (const int rope : s.layer_rope)
        if (rope < -1 || rope >= static_cast<int>(s.ropes.size()))
            fail(s, "layer_rope names rope " + std::to_string(rope));
    for (const int64_t window : s.layer_window)
        if (window < 0) fail(s, "layer_window holds " + std::to_string(window));
    for (const Rope& r : s.ropes) {
        if (r.dim < 2 || r.dim % 2 || r.dim > s.head_dim)
            fail(s, "a rope rotates " + std::to_string(r.dim) + " of " + std::to_string(s.head_dim) + " dimensions");
        if (static_cast<int>(r.inv_freq.size()) != r.dim / 2 ||
            (!r.inv_freq_long.empty() && static_cast<int>(r.inv_freq_long.size()) != r.dim / 2))
            fail(s, "a rope of dimension " + std::to_string(r.dim) + " needs " + std::to_string(r.dim / 2) +
                        " frequencies");
    }
}

ResolvedWeights resolve_weights(const ModelSpec& s, const Weights& weights) {
    const Finder find(s.family + " decoder", weights);
    ResolvedWeights r;
    r.embedding = find.matrix("embedding", s.vocab_size, -1);
    r.word_size = r.embedding.weight->layout.k;
    r.embedding_in = find.matrix("embedding_in", s.hidden_size, r.word_size, true);
    if (!r.embedding_in && r.word_size != s.hidden_size)
        fail(s, "embedding.weight has " + std::to_string(r.word_size) + " columns, the spec asks for " +
                    std::to_string(s.hidden_size));
    r.position_embedding = find.matrix("position_embedding", -1, s.hidden_size, true);
    if (weights.vectors.count("embedding_norm.weight")) {
        r.has_embedding_norm = true;
        r.embedding_norm = find.norm("embedding_norm", s.hidden_size);
    }
    if (s.final_norm) r.final_norm = find.norm("final_norm", s.hidden_size);
    r.head_in = find.matrix("head_in", -1, s.hidden_size, true);
    const int64_t head_columns = r.head_in ? r.head_in.weight->layout.rows : s.hidden_size;
    r.head = s.tied_head ? r.embedding : find.matrix("head", s.vocab_size, head_columns);
    if (s.tied_head) {
        if (r.word_size != head_columns)
            fail(s, "the tied head has " + std::to_string(r.word_size) + " columns, its input " +
                        std::to_string(head_columns));
        r.head.bias = find.vector("head.bias", {s.vocab_size}, true);
        find.give_role(r.head, "head");
    }

    const bool sandwich = s.norm_place == NormPlace::sandwich;
    const int64_t q_size = s.heads * s.head_dim;
    for (int64_t i = 0; i < s.layers; i++) {
        const std::string at = "layers." + std::to_string(i) + ".";
        LayerWeights l;
        l.attention_norm = find.norm(at + "attention_norm", s.hidden_size);
        if (s.residual != Residual::parallel_shared) l.ffn_norm = find.norm(at + "ffn_norm", s.hidden_size);
        if (sandwich) {
            l.attention_post_norm = find.norm(at + "attention_post_norm", s.hidden_size);
            l.ffn_post_norm = find.norm(at + "ffn_post_norm", s.hidden_size);
        }
        l.q_norm = head_norm(s, find, at + "q_norm.weight", s.heads, l.q_norm_per_head);
        l.k_norm = head_norm(s, find, at + "k_norm.weight", s.kv_heads, l.k_norm_per_head);
        l.qkv = find.matrix(at + "qkv", q_size + 2 * s.kv_heads * s.head_dim, s.hidden_size);
        l.o = find.matrix(at + "o", s.hidden_size, q_size);
        l.up = s.gated ? find.matrix(at + "gate_up", 2 * round_up(s.ffn_size, kPanelRows), s.hidden_size)
                       : find.matrix(at + "up", s.ffn_size, s.hidden_size);
        l.down = find.matrix(at + "down", s.hidden_size, s.ffn_size);
        r.layers.push_back(l);
    }
    return r;
}

}  // namespace lowbit
