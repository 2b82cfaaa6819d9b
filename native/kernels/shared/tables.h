// Format properties all tiers share; include inside a tier's anonymous namespace.

#include "shared/macros.h"

// Lambdas take a constant index as an argument of this type.
template <int i>
struct Index {
    static constexpr int value = i;
};

template <FormatId id>
constexpr Format kFormat = format_of(id);

template <FormatId id>
constexpr int kAtomBytes = kPanelRows * kAtomK * kFormat<id>.bits / 8;

template <FormatId id> constexpr Codebook<1> kValues{};  // of codebook formats
template <> constexpr auto kValues<FormatId::nf3> = kNf3Values;
template <> constexpr auto kValues<FormatId::nf4> = kNf4Values;
template <> constexpr auto kValues<FormatId::fp4> = kFp4Values;
template <> constexpr auto kValues<FormatId::fp6> = kFp6Values;
template <> constexpr auto kValues<FormatId::fp8_e4m3> = kFp8E4m3Values;
template <> constexpr auto kValues<FormatId::fp8_e5m2> = kFp8E5m2Values;

template <FormatId id> constexpr Int8Codebook kInteger{{}, 1.0f};  // of codebook formats with int8 compute
template <> constexpr auto kInteger<FormatId::nf3> = kNf3Int8;
template <> constexpr auto kInteger<FormatId::nf4> = kNf4Int8;
template <> constexpr auto kInteger<FormatId::fp4> = kFp4Int8;

template <FormatId id>
constexpr bool kHasInt8 = kFormat<id>.codes == Codes::kGrid || (kFormat<id>.codes == Codes::kCodebook && kFormat<id>.bits <= 4);

template <class T, int N>
struct alignas(64) Table {
    T at[N];
};

// N float values of a code, the codes repeated or cut.
template <FormatId id, int N>
consteval Table<float, N> float_table() {
    Table<float, N> table{};
    for (int i = 0; i < N; i++) {
        const int code = i & ((1 << kFormat<id>.bits) - 1);
        if constexpr (kFormat<id>.codes == Codes::kCodebook) table.at[i] = kValues<id>.value[code];
        else table.at[i] = static_cast<float>(code - kFormat<id>.offset);
    }
    return table;
}

// The int8 codebook repeated to N bytes, each entry plus `offset`.
template <FormatId id, int N>
consteval Table<unsigned char, N> byte_table(int offset) {
    Table<unsigned char, N> table{};
    for (int i = 0; i < N; i++) table.at[i] = static_cast<unsigned char>(kInteger<id>.code[i % 16] + offset);
    return table;
}
