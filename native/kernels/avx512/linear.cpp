#include "lowbit/kernels.h"

namespace lowbit::avx512 {

LinearKernels linear_kernels() {
    LinearKernels k{};
    return k;
}

}  // namespace lowbit::avx512
