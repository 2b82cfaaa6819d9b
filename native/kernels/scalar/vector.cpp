#include "lowbit/kernels.h"

namespace lowbit::scalar {

VectorKernels vector_kernels() {
    VectorKernels k{};
    return k;
}

}  // namespace lowbit::scalar
