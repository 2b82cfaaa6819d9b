#include "lowbit/kernels.h"

namespace lowbit::avx2 {

VectorKernels vector_kernels() {
    VectorKernels k{};
    return k;
}

}  // namespace lowbit::avx2
