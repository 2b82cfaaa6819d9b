// The specification of attention over codes: what the other tiers are tested against.
#include <math.h>

#include "lowbit/code_attention.h"

namespace lowbit::scalar {
namespace {

int32_t code(const void* codes, KvType type, int64_t i) {
    return type == KvType::int8 ? static_cast<const int8_t*>(codes)[i] : static_cast<const int16_t*>(codes)[i];
}

float to_codes(const float* x, int64_t n, float most, int16_t* codes) {
    float top = 0;
    bool finite = true;
    for (int64_t i = 0; i < n; i++) {
        finite = finite && isfinite(x[i]);
        top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
    }
    float scale = 0, inverse = 0;
    if (finite && top >= 0x1p-126f) {
        float squares = 0;
        for (int64_t i = 0; i < n; i++) squares += (x[i] / top) * (x[i] / top);
        const float by_norm = kCodeNorm / sqrtf(squares), largest = by_norm < most ? by_norm : most;
        scale = top / largest;
        inverse = largest / top;
        if (!isfinite(inverse)) scale = inverse = 0;
    }
    for (int64_t i = 0; i < n; i++) codes[i] = inverse == 0 ? 0 : static_cast<int16_t>(lrintf(x[i] * inverse));
    return finite ? scale : NAN;
}

void widen(const int8_t* codes, int64_t n, int16_t* wide) {
    for (int64_t i = 0; i < n; i++) wide[i] = codes[i];
}

void scores(const int16_t* q, const float* q_scales, int64_t rows, const void* keys, KvType type, const float* scales,
            int64_t count, int64_t dim, float* scores, const uint8_t*) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t t = 0; t < count; t++) {
            int32_t sum = 0;
            for (int64_t d = 0; d < dim; d++) sum += q[r * dim + d] * code(keys, type, (d / 2 * kKvBlock + t) * 2 + d % 2);
            scores[r * kKvBlock + t] = static_cast<float>(sum) * scales[t] * q_scales[r];
        }
}

void softmax(const float* scores, int64_t rows, const KeyRange* ranges, const float* scales, RowSoftmax* state, int16_t* weights) {
    for (int64_t r = 0; r < rows; r++, scores += kKvBlock, weights += kKvBlock) {
        const KeyRange range = ranges[r];
        RowSoftmax& s = state[r];
        for (int64_t t = 0; t < kKvBlock; t++) weights[t] = 0;
        s.shrink = 1;
        s.factor = 0;
        if (range.from >= range.to) continue;
        float top = s.sum == 0 ? scores[range.from] : s.largest;
        for (int64_t t = range.from; t < range.to; t++) top = scores[t] > top ? scores[t] : top;
        s.shrink = s.sum == 0 ? 0.0f : expf(s.largest - top);
        s.largest = top;
        s.sum *= s.shrink;
        float weighted[kKvBlock], total = 0;
        for (int64_t t = range.from; t < range.to; t++) {
            const float p = expf(scores[t] - top);
            s.sum += p;
            total += weighted[t] = p * scales[t];
        }
        if (total < 1e-30f) continue;
        s.factor = total / kWeightSum;
        for (int64_t t = range.from; t < range.to; t++)
            weights[t] = total == total ? static_cast<int16_t>(lrintf(weighted[t] * (kWeightSum / total))) : 0;
    }
}

void values(const int16_t* weights, int64_t rows, const void* values, KvType type, int64_t count, int64_t dim,
            const RowSoftmax* state, float* out, const uint8_t*) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = 0; d < dim; d++) {
            int32_t sum = 0;
            for (int64_t t = 0; t < count; t++)
                sum += weights[r * kKvBlock + t] * code(values, type, (t / 2 * dim + d) * 2 + t % 2);
            out[r * dim + d] = out[r * dim + d] * state[r].shrink + static_cast<float>(sum) * state[r].factor;
        }
}

}  // namespace

CodeAttentionKernels code_attention_kernels() { return {to_codes, widen, scores, softmax, values}; }

}  // namespace lowbit::scalar
