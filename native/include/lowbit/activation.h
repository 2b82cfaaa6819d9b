// Non-linearities of the MLP, by the number kernels are given. _spec.py's ACTIVATIONS has the same order.
#pragma once
#include <cstdint>

namespace lowbit {

enum class Activation : uint8_t {
    silu = 0,        // x / (1 + e^-x)
    gelu = 1,        // x/2 (1 + erf(x / sqrt 2))
    gelu_tanh = 2,   // x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
    relu = 3,        // max(x, 0)
    quick_gelu = 4,  // x / (1 + e^(-1.702 x))
};

}  // namespace lowbit
