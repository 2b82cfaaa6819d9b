// What a KV cache stores its elements as.
#pragma once
#include "lowbit/tensor.h"

namespace lowbit {

// Floats as they are, or codes with a scale (fp32) for each key and value of a head: element = code * scale.
enum class KvType : uint8_t { fp32 = 0, fp16 = 1, bf16 = 2, int8 = 3, int16 = 4 };
inline constexpr const char* kKvTypeNames[] = {"fp32", "fp16", "bf16", "int8", "int16"};

constexpr int kv_type_size(KvType t) { return t == KvType::fp32 ? 4 : t == KvType::int8 ? 1 : 2; }
constexpr bool is_codes(KvType t) { return t == KvType::int8 || t == KvType::int16; }
constexpr float most_code(KvType t) { return t == KvType::int8 ? 127.0f : 32767.0f; }
constexpr DType float_type(KvType t) { return static_cast<DType>(t); }  // of a type of floats

}  // namespace lowbit
