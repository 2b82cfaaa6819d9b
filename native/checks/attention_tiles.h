#pragma once

struct Compared {
    int all, equal;
};

// Scores and values of attention over codes in tiles beside those of the avx512 tier; operands below 0 only if `negatives`.
Compared compare_attention(bool negatives);
