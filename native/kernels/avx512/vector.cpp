#include "lowbit/kernels.h"

namespace lowbit::avx512 {

VectorKernels vector_kernels() {
    VectorKernels k{};
    return k;
}

}  // namespace lowbit::avx512
