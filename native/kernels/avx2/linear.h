// What the files of this tier's linear kernels give each other.
#pragma once
#include "lowbit/kernels.h"

namespace lowbit::avx2 {

void add_int8(LinearKernels& k);       // fills in int8
void add_int8_vnni(LinearKernels& k);  // the same by AVX-VNNI; only where the CPU has it
void add_fp32(LinearKernels& k);       // fills in fp32

}  // namespace lowbit::avx2
