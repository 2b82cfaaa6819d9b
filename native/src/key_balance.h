// Evens out the channels of keys before an int8 cache rounds them with one scale for a whole key.
#pragma once
#include <vector>

#include "decoder_weights.h"

namespace lowbit {

// How large each channel of each kv head's keys is, relative to its head: [kv_heads][head_dim] factors, then as many
// inverses. Keys divided and queries multiplied by them have the same products.
std::vector<float> key_balance(const ModelSpec& spec, const LayerWeights& weights, int64_t layer);

}  // namespace lowbit
