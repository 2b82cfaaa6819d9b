// From one row of logits to a token: penalties, temperature, top-k, top-p, min-p, a seeded draw, log-probabilities.
#pragma once
#include <cstdint>
#include <vector>

namespace lowbit {

struct SamplingParams {
    float temperature = 0.0f;         // 0 = greedy
    int32_t top_k = 0;                // 0 = off
    float top_p = 1.0f, min_p = 0.0f;
    float repetition_penalty = 1.0f;  // as in transformers, over prompt and output
    float presence_penalty = 0.0f, frequency_penalty = 0.0f;  // as in OpenAI's API, over the output
    int32_t top_logprobs = -1;        // -1: none wanted, else how many alternatives beside the chosen token
};

struct Sampled {
    int32_t token;
    float logprob;                                          // of the token under the unmodified softmax; NaN if not wanted
    std::vector<std::pair<int32_t, float>> alternatives;    // most likely first
};

// A counter-based generator (SplitMix64 of the pair), so that (seed, position) fixes each draw.
double uniform_draw(uint64_t seed, uint64_t position);

// logits [vocab] is scratch afterwards. prompt/output: token ids so far. mask: [ceil(vocab/32)] bits, 1 = allowed, or null.
// Throws std::invalid_argument when no token is left or a logit is NaN.
Sampled sample(float* logits, int64_t vocab, const SamplingParams& params, const int32_t* prompt, int64_t prompt_count,
               const int32_t* output, int64_t output_count, const uint32_t* mask, uint64_t seed, uint64_t position);

}  // namespace lowbit
