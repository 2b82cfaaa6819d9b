// From one row of logits to a token: mask, penalties, temperature, top-k, top-p, min-p, a seeded draw, log-probabilities.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

namespace lowbit {

struct SamplingParams {
    float temperature = 0.0f;         // 0 = greedy
    int32_t top_k = 0;                // 0 = off; ties with the k-th logit stay, as in transformers
    float top_p = 1.0f, min_p = 0.0f;
    float repetition_penalty = 1.0f;  // as in transformers: once per distinct token of prompt and output
    float presence_penalty = 0.0f, frequency_penalty = 0.0f;  // as in OpenAI's API: counted over the output
    int32_t top_logprobs = -1;        // -1: none wanted, else how many alternatives beside the chosen token
};

struct Sampled {
    int32_t token;
    float logprob;                                          // of the token under the unmodified softmax; NaN if not wanted
    std::vector<std::pair<int32_t, float>> alternatives;    // most likely first, equal ones by lower id
};

// Uniform in [0, 1) with 53 bits. A counter-based generator (SplitMix64 of the pair), so that (seed, position) fixes each
// draw whatever else is decoded at the same time.
double uniform_draw(uint64_t seed, uint64_t position);

// Chooses a token. Greedy takes the largest logit, among equal ones the lowest id. Sampling keeps, in this order, top-k, top-p
// (the fewest most likely tokens that reach the mass; equal ones by lower id) and min-p (at least min_p times the largest
// probability), and inverts the cumulative distribution over the kept tokens in the order of their ids.
// The cost is O(vocab + kept * log(kept) + prompt + output); nothing sorts the vocabulary.
//
// logits [vocab] is scratch afterwards. prompt/output: token ids so far; ids outside the vocabulary are ignored, as in
// transformers. mask: [ceil(vocab/32)] words, bit (id % 32) of word id / 32 set = allowed; or null.
// Throws std::invalid_argument when no token is left or a logit is NaN or +infinity (-infinity forbids a token).
Sampled sample(float* logits, int64_t vocab, const SamplingParams& params, const int32_t* prompt, int64_t prompt_count,
               const int32_t* output, int64_t output_count, const uint32_t* mask, uint64_t seed, uint64_t position);

}  // namespace lowbit
