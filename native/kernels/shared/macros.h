// Compiler hints that the kernels of all tiers use.
#pragma once

#define INLINE_LAMBDA __attribute__((always_inline))
#define ALWAYS_INLINE inline __attribute__((always_inline))
#ifdef __SANITIZE_ADDRESS__  // every load is instrumented there: unrolled kernels would compile for many minutes
#define UNROLL
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define NO_UNROLL _Pragma("GCC unroll 1")
