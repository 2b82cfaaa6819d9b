// Attention over KV caches of codes (kv_type.h), in integer products. Queries, and the weights that a softmax gives to values,
// become codes of 16 bits too, so that a sum of products is exact: it depends neither on its order nor on the tier.
#pragma once
#include "lowbit/kernels.h"
#include "lowbit/kv_type.h"

namespace lowbit {

// Two vectors of codes whose norms keep to this have a product below 2^31, by Cauchy and Schwarz, with the roundings of up to 6000
// elements. A bound on the largest code alone would have to be 60 times tighter for 64 elements.
inline constexpr float kCodeNorm = 46300.0f;
// Weights of a block of values that sum to this stay below 2^15, and their products with codes of 16 bits below 2^31.
inline constexpr float kWeightSum = 32730.0f;

// The keys of a block that a row attends to: [from, to), none where from >= to.
struct KeyRange {
    int32_t from, to;
};

// A row's softmax over the keys seen so far (Milakov & Gimelshein 2018), and how its sum of values goes on.
struct RowSoftmax {
    float largest;  // score; meaningful where sum is not 0
    float sum;      // of e^(score - largest)
    float shrink;   // the sum of values is to be multiplied by this ...
    float factor;   // ... before this times the sum of the block's codes is added
};

// Of `rows` queries over one block of kKvBlock positions, of which `count` count. No entry is null in any tier. While they compute,
// scores and values fetch the block that comes next, evenly: a burst of lines would wait for those that a core can have under way,
// and no hardware prefetcher looks there. `next` is where its keys (values) stand, null to fetch nothing.
struct CodeAttentionKernels {
    // codes[i] = round_half_even(x[i] / scale), i < n; returns the scale, the least that keeps codes to +-most and their norm to
    // kCodeNorm. All codes are 0, and so is the scale, where no element is a normal number; NaN where one is not finite.
    float (*to_codes)(const float* x, int64_t n, float most, int16_t* codes);
    void (*widen)(const int8_t* codes, int64_t n, int16_t* wide);  // wide[i] = codes[i]
    // scores[r][t] = dot(q[r], key t) * scales[t] * q_scales[r], t < count; q [rows][dim], keys [dim/2][kKvBlock][2], scores
    // [rows][kKvBlock], where columns from count on are scratch. dim is even.
    void (*scores)(const int16_t* q, const float* q_scales, int64_t rows, const void* keys, KvType type, const float* scales,
                   int64_t count, int64_t dim, float* scores, const uint8_t* next);
    // Goes on with the softmaxes of rows. With p = e^(score - largest so far) over the range of a row:
    // factor = sum of p * scales[t] / kWeightSum, weights[r][t] = round_half_even(p * scales[t] / factor), and 0 outside the range;
    // factor and all weights are 0 where that sum is below 1e-30. An empty range leaves largest and sum, with shrink 1, factor 0.
    // e^x as in VectorKernels; weights [rows][kKvBlock].
    void (*softmax)(const float* scores, int64_t rows, const KeyRange* ranges, const float* scales, RowSoftmax* state,
                    int16_t* weights);
    // out[r][d] = out[r][d] * shrink + factor * (sum over t < count of weights[r][t] * value t [d]); values [kKvBlock/2][dim][2],
    // out [rows][dim]. dim is a multiple of 16; where count is odd, the weight behind is 0.
    void (*values)(const int16_t* weights, int64_t rows, const void* values, KvType type, int64_t count, int64_t dim,
                   const RowSoftmax* state, float* out, const uint8_t* next);
};

// Those of a tier, which must be available, or of the tier below that has some.
const CodeAttentionKernels& code_attention_kernels(Tier tier);

namespace scalar { CodeAttentionKernels code_attention_kernels(); }
namespace avx2 { CodeAttentionKernels code_attention_kernels(); }
namespace avx512 { CodeAttentionKernels code_attention_kernels(); }

}  // namespace lowbit
