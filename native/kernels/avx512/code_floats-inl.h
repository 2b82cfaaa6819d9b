// What codes mean as floats, by register table look-ups; included behind lanes-inl.h.

template <FormatId id>
constexpr float kFloatFactor = 1.0f;

// Byte b of every lane, moved to the top of the lane.
template <int b>
inline __m512i top_byte(Quad v) { return _mm512_slli_epi32(v, 24 - 8 * b); }

template <FormatId id, int b>
inline Floats float_of(Quad codes) {
    constexpr int bits = kFormat<id>.bits;
    const __m512i index = _mm512_srli_epi32(codes, 8 * b);  // the permutes below ignore all but the low bits
    if constexpr (bits <= 4) {
        static constexpr auto table = float_table<id, 16>();
        return _mm512_permutexvar_ps(index, _mm512_load_ps(table.at));
    } else if constexpr (bits == 5) {
        static constexpr auto table = float_table<id, 32>();
        return _mm512_permutex2var_ps(_mm512_load_ps(table.at), index, _mm512_load_ps(table.at + 16));
    } else if constexpr (id == FormatId::fp6) {  // a table of the 32 magnitudes, and the sign
        static constexpr auto table = float_table<id, 32>();
        const Floats magnitude = _mm512_permutex2var_ps(_mm512_load_ps(table.at), index, _mm512_load_ps(table.at + 16));
        const __m512i sign = _mm512_and_si512(_mm512_slli_epi32(codes, 26 - 8 * b), _mm512_set1_epi32(INT32_MIN));
        return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(magnitude), sign));
    } else if constexpr (id == FormatId::sym_int8) {
        const __m512i centred = _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
        return _mm512_cvtepi32_ps(_mm512_srai_epi32(top_byte<b>(centred), 24));
    } else {  // fp8: the fields where fp32 has them, then the difference of the exponent biases
        constexpr Minifloat f = id == FormatId::fp8_e4m3 ? kE4m3 : kE5m2;
        constexpr uint32_t fields = 0x80000000u | 0x7f000000u >> (8 - f.exponent_bits);
        const __m512i moved = _mm512_srai_epi32(top_byte<b>(codes), 8 - f.exponent_bits);
        const __m512i tiny = _mm512_and_si512(moved, _mm512_set1_epi32(static_cast<int>(fields)));
        constexpr uint32_t scale = (254u - f.bias) << 23;  // 2^(127 - bias)
        return _mm512_mul_ps(_mm512_castsi512_ps(tiny), _mm512_castsi512_ps(_mm512_set1_epi32(scale)));
    }
}
