// The encoder's weights by role instead of by name, checked against the spec once, at construction.
#include <stdexcept>

#include "encoder_forward.h"
#include "lowbit/pack.h"

namespace lowbit {
namespace {

[[noreturn]] void fail(const EncoderSpec& s, const std::string& what) {
    throw std::invalid_argument(s.family + " encoder: " + what);
}

void check_spec(const EncoderSpec& s) {
    const std::pair<const char*, int64_t> sizes[] = {
        {"vocab_size", s.vocab_size}, {"hidden_size", s.hidden_size}, {"layers", s.layers},   {"heads", s.heads},
        {"head_dim", s.head_dim},     {"ffn_size", s.ffn_size},       {"context", s.context},
    };
    for (const auto& [name, value] : sizes)
        if (value < 1 || value > (int64_t{1} << 31)) fail(s, std::string(name) + " is " + std::to_string(value));
    if (s.norm_place == NormPlace::sandwich) fail(s, "norm_place is sandwich");
    if (s.labels < 0 || s.labels > 3 * s.heads * s.head_dim) fail(s, "labels is " + std::to_string(s.labels));
    const auto per_layer = [&](const char* name, size_t have) {
        if (have != 0 && static_cast<int64_t>(have) != s.layers)
            fail(s, std::string(name) + " has " + std::to_string(have) + " entries, not " + std::to_string(s.layers));
    };
    per_layer("layer_rope", s.layer_rope.size());
    per_layer("layer_reach", s.layer_reach.size());
    for (const int rope : s.layer_rope)
        if (rope < -1 || rope >= static_cast<int>(s.ropes.size()))
            fail(s, "layer_rope names rope " + std::to_string(rope));
    for (const int64_t reach : s.layer_reach)
        if (reach < 0) fail(s, "layer_reach holds " + std::to_string(reach));
    for (const Rope& r : s.ropes)
        if (r.dim < 2 || r.dim % 2 || r.dim > s.head_dim || static_cast<int>(r.inv_freq.size()) != r.dim / 2)
            fail(s, "a rope rotates " + std::to_string(r.dim) + " of " + std::to_string(s.head_dim) +
                        " dimensions with " + std::to_string(r.inv_freq.size()) + " frequencies");
    if (!s.relative_buckets.empty() && s.relative_buckets.size() % 2 == 0)
        fail(s, "relative_buckets has an even number of entries");
}

// The bias of every distance for every head, looked up in the table of buckets once.
std::vector<float> relative_bias(const EncoderSpec& s, const Finder& find) {
    if (s.relative_buckets.empty()) return {};
    const PackedView& table = *find.matrix("relative_bias", -1, s.heads).weight;
    const int64_t distances = static_cast<int64_t>(s.relative_buckets.size());
    std::vector<float> row(s.heads), bias(s.heads * distances);
    for (int64_t d = 0; d < distances; d++) {
        const int32_t bucket = s.relative_buckets[d];
        if (bucket < 0 || bucket >= table.layout.rows)
            fail(s, "relative_buckets names bucket " + std::to_string(bucket));
        gather_rows(table, &bucket, 1, row.data(), 0);
        for (int64_t h = 0; h < s.heads; h++) bias[h * distances + d] = row[h];
    }
    return bias;
}

Norm optional_norm(const Finder& find, const std::string& name, int64_t size) {
    return find.has(name + ".weight") ? find.norm(name, size) : Norm{};
}

}  // namespace

EncoderWeights resolve_weights(const EncoderSpec& s, const Weights& weights) {
    check_spec(s);
    const Finder find(s.family + " encoder", weights);
    const int64_t hidden = s.hidden_size, inner = s.heads * s.head_dim;
    EncoderWeights w;
    w.embedding = find.matrix("embedding", s.vocab_size, hidden);
    w.position_embedding = find.matrix("position_embedding", -1, hidden, true);
    if (s.token_types) w.token_type_embedding = find.matrix("token_type_embedding", s.token_types, hidden);
    w.embedding_norm = optional_norm(find, "embedding_norm", hidden);
    if (s.final_norm) w.final_norm = find.norm("final_norm", hidden);
    w.relative_bias = relative_bias(s, find);
    for (int64_t i = 0; i < s.layers; i++) {
        const std::string at = "layers." + std::to_string(i) + ".";
        EncoderLayer l;
        // A norm in front of the first layer would only repeat the embedding's.
        l.attention_norm = i == 0 && s.norm_place == NormPlace::pre ? optional_norm(find, at + "attention_norm", hidden)
                                                                    : find.norm(at + "attention_norm", hidden);
        l.ffn_norm = find.norm(at + "ffn_norm", hidden);
        l.qkv = find.matrix(at + "qkv", 3 * inner, hidden);
        l.o = find.matrix(at + "o", hidden, inner);
        l.up = s.gated ? find.matrix(at + "gate_up", 2 * round_up(s.ffn_size, kPanelRows), hidden)
                       : find.matrix(at + "up", s.ffn_size, hidden);
        l.down = find.matrix(at + "down", hidden, s.ffn_size);
        w.layers.push_back(l);
    }
    if (s.labels) {
        w.head_dense = find.matrix("head_dense", hidden, hidden, true);
        w.head_norm = optional_norm(find, "head_norm", hidden);
        w.head = find.matrix("head", s.labels, hidden);
    }
    return w;
}

}  // namespace lowbit
