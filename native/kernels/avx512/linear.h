// What the files of this tier's linear kernels give each other.
#pragma once
#include "lowbit/kernels.h"

namespace lowbit::avx512 {

void add_int8(LinearKernels& k);  // fills in int8
void add_fp32(LinearKernels& k);  // fills in fp32

}  // namespace lowbit::avx512
