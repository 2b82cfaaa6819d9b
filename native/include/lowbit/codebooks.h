// The values of codebook formats, shared by packing and kernels. Sources: NormalFloat, QLoRA (arXiv:2305.14314) appendix E;
// e2m1 and e3m2, OCP Microscaling (MX) v1.0; e4m3 ("fn") and e5m2, OCP FP8 v1.0. backend/lowbit/formats.py computes the same.
// Everything here is a constant with internal linkage, so kernel units stay free of weak symbols.
#pragma once
#include "lowbit/formats.h"

namespace lowbit {

// A small float: value = (-1)^s 2^(e - bias) 1.m, subnormal at e = 0. The code is s, e, m from the top bit down.
struct Minifloat {
    int exponent_bits, mantissa_bits, bias;
    int max_code;  // largest finite magnitude code; rounding saturates here
};
constexpr Minifloat kE2m1{2, 1, 1, 7}, kE3m2{3, 2, 3, 31}, kE4m3{4, 3, 7, 0x7E}, kE5m2{5, 2, 15, 0x7B};

template <int N>
struct Codebook {
    float value[N];
    consteval float max() const {  // largest finite value
        float m = 0;
        for (float v : value)
            if (v > m && v <= 57344.0f) m = v;
        return m;
    }
};

template <int N>
consteval Codebook<N> minifloat_codebook(Minifloat f) {
    Codebook<N> table{};
    for (int code = 0; code < N; code++) {
        const int magnitude = code & (N / 2 - 1);
        const int e = magnitude >> f.mantissa_bits, m = magnitude & ((1 << f.mantissa_bits) - 1);
        float v = static_cast<float>(e ? (1 << f.mantissa_bits) + m : m);
        int shift = (e ? e : 1) - f.bias - f.mantissa_bits;
        for (; shift > 0; shift--) v *= 2.0f;
        for (; shift < 0; shift++) v *= 0.5f;
        if (magnitude > f.max_code) {  // e5m2 keeps IEEE's infinity, e4m3fn has only NaN there
            const bool ieee = f.max_code >> f.mantissa_bits < (1 << f.exponent_bits) - 1;
            v = ieee && magnitude == f.max_code + 1 ? __builtin_inff() : __builtin_nanf("");
        }
        table.value[code] = code & (N / 2) ? -v : v;
    }
    return table;
}

constexpr Codebook<16> kNf4Values{{-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
                                   -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
                                   0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
                                   0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f}};
constexpr Codebook<8> kNf3Values{{-1.0f, -0.4786291718482971f, -0.21714182198047638f, 0.0f, 0.16093020141124725f,
                                  0.33791524171829224f, 0.5626170039176941f, 1.0f}};
constexpr Codebook<16> kFp4Values = minifloat_codebook<16>(kE2m1);
constexpr Codebook<64> kFp6Values = minifloat_codebook<64>(kE3m2);
constexpr Codebook<256> kFp8E4m3Values = minifloat_codebook<256>(kE4m3);
constexpr Codebook<256> kFp8E5m2Values = minifloat_codebook<256>(kE5m2);

// Codebooks rounded to int8 for int8 products: value ~ code * factor. fp4 is exact, nf3 and nf4 are round(127 * value).
// Entries past the format's codes repeat the table, so 16-entry byte shuffles can use it as it is.
struct Int8Codebook {
    signed char code[16];
    float factor;
};

template <int N>
consteval Int8Codebook int8_codebook(const Codebook<N>& values, float per_unit) {
    Int8Codebook table{{}, 1.0f / per_unit};
    for (int i = 0; i < 16; i++) {
        const float scaled = values.value[i % N] * per_unit;
        table.code[i] = static_cast<signed char>(scaled + (scaled < 0 ? -0.5f : 0.5f));
    }
    return table;
}
constexpr Int8Codebook kNf4Int8 = int8_codebook(kNf4Values, 127.0f);
constexpr Int8Codebook kNf3Int8 = int8_codebook(kNf3Values, 127.0f);
constexpr Int8Codebook kFp4Int8 = int8_codebook(kFp4Values, 2.0f);

static_assert(kFp6Values.max() == 28.0f && kFp8E4m3Values.max() == 448.0f && kFp8E5m2Values.max() == 57344.0f);
static_assert(kNf4Int8.code[0] == -127 && kNf4Int8.code[7] == 0 && kNf4Int8.code[15] == 127);
static_assert(kFp4Int8.code[7] == 12 && kFp4Int8.code[15] == -12 && kFp4Int8.factor == 0.5f);

}  // namespace lowbit
