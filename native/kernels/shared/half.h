// IEEE half and bfloat16 to float, without library code: kernel units must not emit symbols other units could link to.
// Include inside a tier's anonymous namespace.

// Exact for every half, subnormals, infinities and NaN included.
[[maybe_unused]] inline float half_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    uint32_t bits = 0;
    float value = 0;
    if (exponent == 0) {
        value = static_cast<float>(mantissa) * 0x1p-24f;
        __builtin_memcpy(&bits, &value, 4);
    } else {
        bits = (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
    }
    bits |= sign;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

[[maybe_unused]] inline float bfloat_to_float(uint16_t b) {
    const uint32_t bits = static_cast<uint32_t>(b) << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}
