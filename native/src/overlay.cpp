#include "lowbit/kernels.h"

namespace lowbit {
namespace {

template <class F>
void take(F& into, F from) {
    if (from) into = from;
}

}  // namespace

void overlay(LinearKernels& l, const LinearKernels& u) {
    for (int i = 0; i < 16; i++) {
        take(l.int8[i], u.int8[i]);
        take(l.fp32[i], u.fp32[i]);
        take(l.bf16[i], u.bf16[i]);
        take(l.int8_many[i], u.int8_many[i]);
        take(l.fp32_many[i], u.fp32_many[i]);
        take(l.bf16_many[i], u.bf16_many[i]);
    }
    take(l.tiles, u.tiles);
    take(l.quantize_row, u.quantize_row);
}

void overlay(VectorKernels& v, const VectorKernels& u) {
    take(v.rms_norm, u.rms_norm);
    take(v.layer_norm, u.layer_norm);
    take(v.add, u.add);
    take(v.max, u.max);
    take(v.exp_sum, u.exp_sum);
    take(v.to_fp16, u.to_fp16);
    take(v.to_bf16, u.to_bf16);
    take(v.activate, u.activate);
    take(v.activate_gated, u.activate_gated);
    take(v.attention_scores, u.attention_scores);
    take(v.attention_values, u.attention_values);
}

}  // namespace lowbit
