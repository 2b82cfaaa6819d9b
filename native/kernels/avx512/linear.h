// What the files of this tier's linear kernels give each other.
#pragma once
#include "lowbit/kernels.h"

namespace lowbit::avx512 {

void add_int8(LinearKernels& k);  // fills in int8
void add_fp32(LinearKernels& k);  // fills in fp32
void add_bf16_weights(LinearKernels& k);  // fills in bf16 for that format; only where the CPU has AVX512_BF16

}  // namespace lowbit::avx512
