// The specification of the element-wise and attention kernels: what the other tiers are tested against.
#include <math.h>

#include "lowbit/half.h"
#include "lowbit/kernels.h"

namespace lowbit::scalar {
namespace {

float load(const void* data, DType dtype, int64_t i) {
    if (dtype == DType::fp16) return half_to_float(static_cast<const uint16_t*>(data)[i]);
    if (dtype == DType::bf16) return bf16_to_float(static_cast<const uint16_t*>(data)[i]);
    return static_cast<const float*>(data)[i];
}

void rms_norm(const float* x, const float* weight, float weight_offset, float eps, int64_t n, float* y) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += static_cast<double>(x[i]) * x[i];
    const float scale = 1.0f / sqrtf(static_cast<float>(sum / n) + eps);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * (weight[i] + weight_offset);
}

void layer_norm(const float* x, const float* weight, const float* bias, float weight_offset, float eps, int64_t n,
                float* y) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    const float mean = static_cast<float>(sum / n);
    for (int64_t i = 0; i < n; i++) squares += static_cast<double>(x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / sqrtf(static_cast<float>(squares / n) + eps);
    for (int64_t i = 0; i < n; i++)
        y[i] = (x[i] - mean) * scale * (weight ? weight[i] + weight_offset : 1.0f) + (bias ? bias[i] : 0.0f);
}

void add(float* y, const float* x, float scale, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] += scale * x[i];
}

float max(const float* x, int64_t n) {
    float largest = x[0];
    for (int64_t i = 1; i < n; i++) largest = x[i] > largest ? x[i] : largest;
    return largest;
}

float exp_sum(float* x, float shift, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] = expf(x[i] - shift);
    return sum;
}

void to_fp16(const float* x, uint16_t* y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = float_to_half(x[i]);
}

void to_bf16(const float* x, uint16_t* y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = float_to_bf16(x[i]);
}

float apply(Activation f, float x) {
    switch (f) {
        case Activation::silu:
            return x / (1.0f + expf(-x));
        case Activation::gelu:
            return 0.5f * x * (1.0f + erff(x * 0.70710678f));
        case Activation::gelu_tanh:
            return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
        case Activation::relu:
            return x < 0.0f ? 0.0f : x;
        case Activation::quick_gelu:
            return x / (1.0f + expf(-1.702f * x));
    }
    return x;
}

void activate(Activation f, const float* x, int64_t n, float* y) {
    for (int64_t i = 0; i < n; i++) y[i] = apply(f, x[i]);
}

void activate_gated(Activation f, const float* gate_up, int64_t n, float* y) {
    for (int64_t i = 0; i < n; i++) {
        const float* panels = gate_up + i / kPanelRows * (2 * kPanelRows) + i % kPanelRows;
        y[i] = apply(f, panels[0]) * panels[kPanelRows];
    }
}

void attention_scores(const float* q, int64_t rows, const void* keys, DType dtype, int64_t count, int64_t dim,
                      float* scores) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t t = 0; t < count; t++) {
            float sum = 0;
            for (int64_t d = 0; d < dim; d++) sum += q[r * dim + d] * load(keys, dtype, d * kKvBlock + t);
            scores[r * kKvBlock + t] = sum;
        }
}

void attention_values(const float* weights, int64_t rows, const void* values, DType dtype, int64_t count, int64_t dim,
                      float* out) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t t = 0; t < count; t++) {
            const float weight = weights[r * kKvBlock + t];
            for (int64_t d = 0; d < dim; d++) out[r * dim + d] += weight * load(values, dtype, t * dim + d);
        }
}

// ---- queries in lanes ---------------------------------------------------------------------------------------------

void from_rows(const float* x, int64_t stride, int64_t count, int64_t dim, const float* bias, float scale, float* lanes) {
    for (int64_t d = 0; d < dim; d++)
        for (int64_t r = 0; r < kQueryLanes; r++)
            lanes[d * kQueryLanes + r] = r < count ? (x[r * stride + d] + (bias ? bias[d] : 0.0f)) * scale : 0.0f;
}

void lane_scores(const float* q, const float* keys, int64_t stride, int64_t count, int64_t dim, float* scores) {
    for (int64_t t = 0; t < count; t++)
        for (int64_t r = 0; r < kQueryLanes; r++) {
            float sum = 0;
            for (int64_t d = 0; d < dim; d++) sum += q[d * kQueryLanes + r] * keys[t * stride + d];
            scores[t * kQueryLanes + r] = sum;
        }
}

void lane_softmax(float* scores, int64_t count, float* largest, float* sums, float* shrink) {
    for (int64_t r = 0; r < kQueryLanes; r++) {
        float top = largest[r];
        for (int64_t t = 0; t < count; t++) top = scores[t * kQueryLanes + r] > top ? scores[t * kQueryLanes + r] : top;
        shrink[r] = expf(largest[r] - top);
        largest[r] = top;
        sums[r] *= shrink[r];
        for (int64_t t = 0; t < count; t++) sums[r] += scores[t * kQueryLanes + r] = expf(scores[t * kQueryLanes + r] - top);
    }
}

void lane_values(const float* weights, const float* values, int64_t stride, int64_t count, int64_t dim, const float* shrink, float* out) {
    for (int64_t d = 0; d < dim; d++)
        for (int64_t r = 0; r < kQueryLanes; r++) {
            float sum = out[d * kQueryLanes + r] * shrink[r];
            for (int64_t t = 0; t < count; t++) sum += weights[t * kQueryLanes + r] * values[t * stride + d];
            out[d * kQueryLanes + r] = sum;
        }
}

void to_rows(const float* lanes, const float* sums, int64_t count, int64_t dim, const float* bias, float* y, int64_t stride) {
    for (int64_t r = 0; r < count; r++)
        for (int64_t d = 0; d < dim; d++) y[r * stride + d] = lanes[d * kQueryLanes + r] / sums[r] + (bias ? bias[d] : 0.0f);
}

}  // namespace

QueryLaneKernels query_lane_kernels() { return {from_rows, lane_scores, lane_softmax, lane_values, to_rows}; }

VectorKernels vector_kernels() {
    VectorKernels k{};
    k.rms_norm = rms_norm;
    k.layer_norm = layer_norm;
    k.add = add;
    k.max = max;
    k.exp_sum = exp_sum;
    k.to_fp16 = to_fp16;
    k.to_bf16 = to_bf16;
    k.activate = activate;
    k.activate_gated = activate_gated;
    k.attention_scores = attention_scores;
    k.attention_values = attention_values;
    return k;
}

}  // namespace lowbit::scalar
