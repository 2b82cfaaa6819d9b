// Non-owning views. Whoever holds the memory keeps it alive; views are immutable and shared by all sessions.
#pragma once
#include "lowbit/formats.h"

namespace lowbit {

enum class DType : uint8_t { fp32 = 0, fp16 = 1, bf16 = 2 };
constexpr int dtype_size(DType t) { return t == DType::fp32 ? 4 : 2; }

// A packed weight [rows, k] in the P16K layout; data is 64-byte aligned.
struct PackedView {
    const Format* format = nullptr;
    Layout layout{};
    float multiplier = 1.0f;
    const uint8_t* data = nullptr;

    explicit operator bool() const { return data != nullptr; }
    const uint8_t* panel(int64_t p) const { return data + p * layout.panel_bytes; }
};

// A row-major float matrix [rows, cols] with a row stride in elements, of any float dtype.
struct FloatView {
    const void* data = nullptr;
    DType dtype = DType::fp32;
    int64_t rows = 0, cols = 0, stride = 0;
};

}  // namespace lowbit
