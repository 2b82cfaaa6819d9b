// One round is an instruction for each of `sums` independent sums; asm keeps the compiler from seeing through them.
template <int sums, class V, class Step>
inline void repeat(int64_t rounds, V a, V b, Step step) {
    V sum[sums];
#pragma GCC unroll 32
    for (int i = 0; i < sums; i++) {
        sum[i] = a;
        __asm__ volatile("" : "+x"(sum[i]));  // equal sums would be computed once
    }
    for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 32
        for (int i = 0; i < sums; i++) sum[i] = step(sum[i], a, b);
    }
#pragma GCC unroll 32
    for (int i = 0; i < sums; i++) __asm__ volatile("" ::"x"(sum[i]));
}
