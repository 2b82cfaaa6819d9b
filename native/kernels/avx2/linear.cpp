#include "lowbit/kernels.h"

namespace lowbit::avx2 {

LinearKernels linear_kernels() {
    LinearKernels k{};
    return k;
}

}  // namespace lowbit::avx2
