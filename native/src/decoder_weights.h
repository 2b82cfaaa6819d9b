// The decoder's weights by role instead of by name, checked against the spec once, at construction.
#pragma once
#include <vector>

#include "find_weights.h"
#include "lowbit/decoder.h"

namespace lowbit {

struct LayerWeights {
    Norm attention_norm, attention_post_norm, ffn_norm, ffn_post_norm;
    const float* q_norm = nullptr;
    const float* k_norm = nullptr;
    bool q_norm_per_head = false,
         k_norm_per_head = false;  // own weights for every head instead of one [head_dim] for all
    Matrix qkv, o, up, down;       // `up` is gate_up in a gated MLP
    std::vector<float> key_balance;  // key_balance.h; empty until an int8 cache asks for it
};

struct ResolvedWeights {
    Matrix embedding, position_embedding, embedding_in, head_in, head;
    bool has_embedding_norm = false;
    Norm embedding_norm, final_norm;
    std::vector<LayerWeights> layers;
    int64_t word_size = 0;  // columns of the embedding: hidden_size unless embedding_in projects
};

// Throw std::invalid_argument naming the field, or the tensor with the shape it has and the shape it should have.
void check_spec(const ModelSpec& spec);
ResolvedWeights resolve_weights(const ModelSpec& spec, const Weights& weights);

}  // namespace lowbit
