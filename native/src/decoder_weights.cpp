#include "decoder_weights.h"

#include <stdexcept>

namespace lowbit {
namespace {

std::string shape_text(int64_t rows, int64_t cols) {
    std::string text = "[";
    text += std::to_string(rows);
    if (cols >= 0) text += ", " + std::to_string(cols);
    return text + "]";
}

[[noreturn]] void fail(const ModelSpec& spec, const std::string& what) {
    throw std::invalid_argument(spec.family + " decoder: " + what);
}

class Finder {
public:
    Finder(const ModelSpec& spec, const DecoderWeights& weights) : spec_(spec), weights_(weights) {}

    // `name`.weight as a matrix with its bias if there is one. rows or cols -1: any.
    Matrix matrix(const std::string& name, int64_t rows, int64_t cols, bool optional = false) const {
        Matrix m;
        const auto found = weights_.packed.find(name + ".weight");
        if (found == weights_.packed.end()) {
            if (!optional) fail(spec_, "the matrix " + name + ".weight is missing");
            return m;
        }
        const Layout& l = found->second.layout;
        if ((rows >= 0 && l.rows != rows) || (cols >= 0 && l.k != cols))
            fail(spec_, name + ".weight has shape " + shape_text(l.rows, l.k) + ", the spec asks for " +
                            shape_text(rows, cols));
        m.weight = &found->second;
        m.bias = vector(name + ".bias", {l.rows}, true);
        return m;
    }

    const float* vector(const std::string& name, std::initializer_list<int64_t> sizes, bool optional = false) const {
        const auto found = weights_.vectors.find(name);
        if (found == weights_.vectors.end()) {
            if (!optional) fail(spec_, "the vector " + name + " is missing");
            return nullptr;
        }
        const int64_t size = static_cast<int64_t>(found->second.size());
        for (const int64_t wanted : sizes)
            if (size == wanted) return found->second.data();
        fail(spec_,
             name + " has shape " + shape_text(size, -1) + ", the spec asks for " + shape_text(*sizes.begin(), -1));
    }

    Norm norm(const std::string& name) const {
        return {vector(name + ".weight", {spec_.hidden_size}), vector(name + ".bias", {spec_.hidden_size}, true)};
    }

    // A norm of q or k: one weight for all heads, or one per head.
    const float* head_norm(const std::string& name, int64_t heads, bool& per_head) const {
        const int64_t one = spec_.head_dim, all = heads * spec_.head_dim;
        const float* w = spec_.qk_norm_whole ? vector(name, {all}, true) : vector(name, {one, all}, true);
        per_head = w && heads > 1 && static_cast<int64_t>(weights_.vectors.at(name).size()) == all;
        return w;
    }

private:
    const ModelSpec& spec_;
    const DecoderWeights& weights_;
};

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

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

ResolvedWeights resolve_weights(const ModelSpec& s, const DecoderWeights& weights) {
    const Finder find(s, weights);
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
        r.embedding_norm = find.norm("embedding_norm");
    }
    if (s.final_norm) r.final_norm = find.norm("final_norm");
    r.head_in = find.matrix("head_in", -1, s.hidden_size, true);
    const int64_t head_columns = r.head_in ? r.head_in.weight->layout.rows : s.hidden_size;
    r.head = s.tied_head ? r.embedding : find.matrix("head", s.vocab_size, head_columns);
    if (s.tied_head) {
        if (r.word_size != head_columns)
            fail(s, "the tied head has " + std::to_string(r.word_size) + " columns, its input " +
                        std::to_string(head_columns));
        r.head.bias = find.vector("head.bias", {s.vocab_size}, true);
    }

    const bool sandwich = s.norm_place == NormPlace::sandwich;
    const int64_t q_size = s.heads * s.head_dim;
    for (int64_t i = 0; i < s.layers; i++) {
        const std::string at = "layers." + std::to_string(i) + ".";
        LayerWeights l;
        l.attention_norm = find.norm(at + "attention_norm");
        if (s.residual != Residual::parallel_shared) l.ffn_norm = find.norm(at + "ffn_norm");
        if (sandwich) {
            l.attention_post_norm = find.norm(at + "attention_post_norm");
            l.ffn_post_norm = find.norm(at + "ffn_post_norm");
        }
        l.q_norm = find.head_norm(at + "q_norm.weight", s.heads, l.q_norm_per_head);
        l.k_norm = find.head_norm(at + "k_norm.weight", s.kv_heads, l.k_norm_per_head);
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
