// The reference of benchmarks: memory read and nothing else. Not part of a product.
#pragma once
#include <cstdint>

namespace lowbit {

// Loads every 64-byte line of [data, data + bytes) once; data is 64-byte aligned, bytes a multiple of 64. `streams` sequential
// streams of 32 KiB lie side by side, block after block, as a kernel reads its panels; a prefetch runs `ahead` bytes before each.
void read_lines(const uint8_t* data, int64_t bytes, int streams, int64_t ahead);

}  // namespace lowbit
