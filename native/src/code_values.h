// What each code of a scaled format stands for before its scale.
#pragma once
#include "lowbit/codebooks.h"
#include "lowbit/formats.h"

namespace lowbit {

inline const float* codebook(FormatId id) {
    switch (id) {
        case FormatId::nf3: return kNf3Values.value;
        case FormatId::nf4: return kNf4Values.value;
        case FormatId::fp4: return kFp4Values.value;
        case FormatId::fp6: return kFp6Values.value;
        case FormatId::fp8_e4m3: return kFp8E4m3Values.value;
        case FormatId::fp8_e5m2: return kFp8E5m2Values.value;
        default: return nullptr;
    }
}

struct CodeValues {
    float value[256];

    explicit CodeValues(const Format& f) {
        const float* book = codebook(f.id);
        for (int c = 0; c < (f.codes == Codes::kFloat ? 0 : 1 << f.bits); c++)
            value[c] = book ? book[c] : static_cast<float>(c - f.offset);
    }
};

}  // namespace lowbit
