// See sampler.h. Sums run in double, so that the draw does not depend on how many tokens a filter leaves to add up.
#include "lowbit/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace lowbit {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

struct Candidate {
    double x;       // (logit - largest logit) / temperature, so the most likely token has 0
    double weight;  // exp(x)
    int32_t id;
};

bool likelier(const Candidate& a, const Candidate& b) { return a.x != b.x ? a.x > b.x : a.id < b.id; }

void check(const float* logits, int64_t vocab) {
    int32_t good = 0;  // a sum of comparisons becomes vector instructions; NaN fails every comparison
    for (int64_t i = 0; i < vocab; i++) good += logits[i] <= std::numeric_limits<float>::max();
    if (good == vocab) return;
    int64_t i = 0;
    while (logits[i] <= std::numeric_limits<float>::max()) i++;
    throw std::invalid_argument("the logit of token " + std::to_string(i) + (std::isnan(logits[i]) ? " is NaN" : " is +infinity") +
                                ": the model's weights or its computation are broken; try compute=\"fp32\" or another format");
}

// Sixteen independent maxima become vector instructions, which std::max_element does not.
float largest_of(const float* logits, int64_t vocab) {
    constexpr int kLanes = 16;
    float lanes[kLanes];
    std::fill(lanes, lanes + kLanes, kForbidden);
    int64_t i = 0;
    for (; i + kLanes <= vocab; i += kLanes)
        for (int j = 0; j < kLanes; j++) lanes[j] = logits[i + j] > lanes[j] ? logits[i + j] : lanes[j];
    for (; i < vocab; i++) lanes[0] = std::max(lanes[0], logits[i]);
    return *std::max_element(lanes, lanes + kLanes);
}

void apply_mask(float* logits, int64_t vocab, const uint32_t* mask) {
    for (int64_t i = 0; i < vocab; i += 32) {
        const uint32_t word = mask[i / 32];
        if (word == ~0u) continue;
        for (int64_t j = i; j < std::min(vocab, i + 32); j++)
            if (!((word >> (j - i)) & 1)) logits[j] = kForbidden;
    }
}

// A penalised logit stays finite, so that no penalty forbids a token or makes it certain; a forbidden one stays forbidden.
float bounded(float before, float after) {
    constexpr float kMost = std::numeric_limits<float>::max();
    return before == kForbidden ? kForbidden : std::clamp(after, -kMost, kMost);
}

void apply_repetition_penalty(float* logits, int64_t vocab, float penalty, const int32_t* prompt, int64_t prompt_count,
                              const int32_t* output, int64_t output_count) {
    std::vector<bool> seen(static_cast<size_t>(vocab));
    auto visit = [&](const int32_t* ids, int64_t count) {
        for (int64_t i = 0; i < count; i++) {
            const int64_t id = ids[i];
            if (id < 0 || id >= vocab || seen[static_cast<size_t>(id)]) continue;
            seen[static_cast<size_t>(id)] = true;
            logits[id] = bounded(logits[id], logits[id] < 0 ? logits[id] * penalty : logits[id] / penalty);
        }
    };
    visit(prompt, prompt_count);
    visit(output, output_count);
}

void apply_output_penalties(float* logits, int64_t vocab, float presence, float frequency, const int32_t* output, int64_t count) {
    std::vector<int32_t> ids(output, output + count);
    std::sort(ids.begin(), ids.end());
    for (size_t i = 0, next; i < ids.size(); i = next) {
        for (next = i; next < ids.size() && ids[next] == ids[i];) next++;
        if (ids[i] < 0 || ids[i] >= vocab) continue;
        float& logit = logits[ids[i]];
        logit = bounded(logit, logit - (presence + frequency * static_cast<float>(next - i)));
    }
}

// The k-th largest logit. A heap of the k largest so far: for k far below vocab nearly every element costs one comparison.
float kth_largest(const float* logits, int64_t vocab, int64_t k) {
    std::vector<float> heap(logits, logits + k);
    if (k > vocab / 16) {
        heap.assign(logits, logits + vocab);
        std::nth_element(heap.begin(), heap.begin() + (k - 1), heap.end(), std::greater<float>());
        return heap[static_cast<size_t>(k - 1)];
    }
    std::make_heap(heap.begin(), heap.end(), std::greater<float>());
    for (int64_t i = k; i < vocab; i++) {
        if (logits[i] <= heap.front()) continue;
        std::pop_heap(heap.begin(), heap.end(), std::greater<float>());
        heap.back() = logits[i];
        std::push_heap(heap.begin(), heap.end(), std::greater<float>());
    }
    return heap.front();
}

// Ids with a finite logit of at least `threshold`, in the order of ids.
std::vector<Candidate> gather(const float* logits, int64_t vocab, double threshold, double largest, double temperature) {
    std::vector<Candidate> kept;
    if (threshold == kForbidden) kept.reserve(static_cast<size_t>(vocab));
    for (int64_t i = 0; i < vocab; i++) {
        if (!(logits[i] >= threshold) || logits[i] == kForbidden) continue;
        const double x = (logits[i] - largest) / temperature;
        kept.push_back({x, std::exp(x), static_cast<int32_t>(i)});
    }
    return kept;
}

double mass(const std::vector<Candidate>& candidates) {
    double sum = 0;
    for (const Candidate& c : candidates) sum += c.weight;
    return sum;
}

void keep_top_p(std::vector<Candidate>& candidates, double top_p) {
    const double total = mass(candidates);
    // A token with less than (1 - p) / n of the mass cannot be in the nucleus: all such tokens together weigh less than 1 - p.
    // What is left to sort is a small part of a vocabulary.
    const double floor = std::log(total * (1 - top_p) / static_cast<double>(candidates.size()));
    std::erase_if(candidates, [&](const Candidate& c) { return c.x < floor - 1e-9 && c.x < 0; });
    std::sort(candidates.begin(), candidates.end(), likelier);
    double above = 0;
    size_t kept = 0;
    while (kept < candidates.size() && (kept == 0 || above < top_p * total)) above += candidates[kept++].weight;
    candidates.resize(kept);
    std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
}

int32_t draw(const std::vector<Candidate>& candidates, double u) {
    const double target = u * mass(candidates);
    double cumulative = 0;
    int32_t last = candidates.front().id;
    for (const Candidate& c : candidates) {
        if (c.weight > 0) last = c.id;
        cumulative += c.weight;
        if (cumulative > target) return c.id;
    }
    return last;
}

int32_t choose(const float* logits, int64_t vocab, const SamplingParams& params, uint64_t seed, uint64_t position) {
    const float best = largest_of(logits, vocab);
    if (best == kForbidden)
        throw std::invalid_argument("no token is left to choose from: the mask and suppress_tokens forbid every one");
    if (params.temperature == 0) return static_cast<int32_t>(std::find(logits, logits + vocab, best) - logits);

    const double temperature = params.temperature;
    const double least = params.min_p > 0 ? std::log(static_cast<double>(params.min_p)) : kForbidden;  // of a kept x
    double threshold = kForbidden;
    if (params.top_k > 0 && params.top_k < vocab) threshold = kth_largest(logits, vocab, params.top_k);
    // Without top-p between them, min-p can drop most of the vocabulary before anything is computed from it.
    if (params.min_p > 0 && params.top_p >= 1) threshold = std::max(threshold, best + (least - 1e-6) * temperature);
    std::vector<Candidate> candidates = gather(logits, vocab, threshold, best, temperature);
    if (params.top_p < 1) keep_top_p(candidates, params.top_p);
    std::erase_if(candidates, [&](const Candidate& c) { return c.x < least; });
    return draw(candidates, uniform_draw(seed, position));
}

// log of the sum of exp over the row, for log-probabilities.
double log_sum_exp(const float* logits, int64_t vocab) {
    const double largest = largest_of(logits, vocab);
    double sum = 0;
    for (int64_t i = 0; i < vocab; i++) sum += std::exp(logits[i] - largest);
    return largest + std::log(sum);
}

std::vector<std::pair<int32_t, float>> most_likely(const float* logits, int64_t vocab, int64_t count, double log_sum) {
    std::vector<std::pair<int32_t, float>> result;
    count = std::min(count, vocab);
    if (count == 0) return result;
    std::vector<Candidate> top = gather(logits, vocab, kth_largest(logits, vocab, count), 0, 1);
    std::sort(top.begin(), top.end(), likelier);
    if (top.size() > static_cast<size_t>(count)) top.resize(static_cast<size_t>(count));
    for (const Candidate& c : top) result.push_back({c.id, static_cast<float>(c.x - log_sum)});
    return result;
}

uint64_t mix(uint64_t z) {  // the finaliser of SplitMix64 (Steele, Lea, Flood 2014)
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

}  // namespace

double uniform_draw(uint64_t seed, uint64_t position) {
    constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;
    // Mixing the seed first keeps neighbouring seeds from being shifted copies of one stream.
    const uint64_t bits = mix(mix(seed + kGolden) + (position + 1) * kGolden);
    return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

Sampled sample(float* logits, int64_t vocab, const SamplingParams& params, const int32_t* prompt, int64_t prompt_count,
               const int32_t* output, int64_t output_count, const uint32_t* mask, uint64_t seed, uint64_t position) {
    if (vocab < 1) throw std::invalid_argument("a row of logits needs at least one value");
    check(logits, vocab);
    Sampled result{0, std::numeric_limits<float>::quiet_NaN(), {}};
    const bool logprobs = params.top_logprobs >= 0;
    double log_sum = 0;
    std::vector<float> unmodified;
    if (logprobs) {
        log_sum = log_sum_exp(logits, vocab);
        result.alternatives = most_likely(logits, vocab, params.top_logprobs, log_sum);
        unmodified.assign(logits, logits + vocab);
    }
    if (params.repetition_penalty != 1)
        apply_repetition_penalty(logits, vocab, params.repetition_penalty, prompt, prompt_count, output, output_count);
    if (params.presence_penalty != 0 || params.frequency_penalty != 0)
        apply_output_penalties(logits, vocab, params.presence_penalty, params.frequency_penalty, output, output_count);
    if (mask) apply_mask(logits, vocab, mask);
    result.token = choose(logits, vocab, params, seed, position);
    if (logprobs) result.logprob = static_cast<float>(unmodified[static_cast<size_t>(result.token)] - log_sum);
    return result;
}

}  // namespace lowbit
