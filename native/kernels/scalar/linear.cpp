#include "lowbit/kernels.h"

namespace lowbit::scalar {

LinearKernels linear_kernels() {
    LinearKernels k{};
    return k;
}

}  // namespace lowbit::scalar
