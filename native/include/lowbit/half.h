// fp16 and bf16 as bits, to and from fp32: branch-free, so loops over them vectorise on any instruction set. Round to nearest
// even, subnormals kept. Internal linkage: kernel units may include this.
#pragma once
#include <cstdint>

namespace lowbit {

static inline uint32_t float_bits(float x) { return __builtin_bit_cast(uint32_t, x); }
static inline float bits_float(uint32_t u) { return __builtin_bit_cast(float, u); }

static inline float bf16_to_float(uint16_t h) { return bits_float(static_cast<uint32_t>(h) << 16); }

static inline uint16_t float_to_bf16(float x) {
    const uint32_t u = float_bits(x);
    const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    const bool nan = (u & 0x7FFFFFFFu) > 0x7F800000u;
    return static_cast<uint16_t>(nan ? (u >> 16) | 0x40u : rounded);
}

static inline float half_to_float(uint16_t h) {
    const uint32_t magnitude = static_cast<uint32_t>(h & 0x7FFFu) << 13;
    const uint32_t exponent = magnitude & 0x0F800000u;
    const uint32_t normal = magnitude + (112u << 23);               // rebias
    const uint32_t special = magnitude + (224u << 23);              // infinity, NaN
    const uint32_t subnormal = float_bits(bits_float(magnitude + (113u << 23)) - bits_float(113u << 23));
    const uint32_t value = exponent == 0 ? subnormal : exponent == 0x0F800000u ? special : normal;
    return bits_float(value | static_cast<uint32_t>(h & 0x8000u) << 16);
}

static inline uint16_t float_to_half(float x) {
    const uint32_t u = float_bits(x), a = u & 0x7FFFFFFFu;
    const uint32_t normal = (a - (112u << 23) + 0xFFFu + ((a >> 13) & 1u)) >> 13;
    const uint32_t subnormal = float_bits(bits_float(a) + 0.5f) - float_bits(0.5f);  // the addition rounds to steps of 2^-24
    const uint32_t special = a > 0x7F800000u ? 0x7E00u : 0x7C00u;
    const uint32_t value = a < 0x38800000u ? subnormal : a < 0x477FF000u ? normal : special;
    return static_cast<uint16_t>(value | (u >> 16 & 0x8000u));
}

}  // namespace lowbit
