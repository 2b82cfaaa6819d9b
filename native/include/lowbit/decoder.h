// The decoder: a ModelSpec interpreted over immutable weights. Sessions own their KV cache and position; a forward pass
// takes any number of (session, tokens) parts at once, so prefill, single steps and batched steps are the same call.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lowbit/kv_cache.h"
#include "lowbit/linear.h"
#include "lowbit/phases.h"
#include "lowbit/spec.h"
#include "lowbit/weights.h"

namespace lowbit {

struct Part {
    KvCache* cache;  // this part's session; each session at most once in a call
    const int32_t* tokens;
    int64_t count;    // >= 1
    bool all_logits;  // logits of every token, else of the last one
};

class Decoder {
public:
    // Checks that every tensor the spec asks for is there with the right shape; throws std::invalid_argument naming it.
    // The kernels outlive this.
    Decoder(ModelSpec spec, Weights weights, Compute compute, const KernelTable& kernels);
    ~Decoder();

    const ModelSpec& spec() const;

    // Appends the tokens of each part to its cache and writes logits, fp32 [sum of logit rows][vocab_size], in part
    // order. Checks everything before it changes anything: throws std::length_error when a cache has no room or the
    // model no more learned positions, std::invalid_argument for token ids out of range, a cache given twice or of
    // another shape, std::bad_alloc when there is no memory for activations. Safe from any thread: calls on one decoder
    // queue.
    void forward(ThreadPool& pool, const std::vector<Part>& parts, float* logits);

    // The same with what the head reads instead of what it says: final hidden states, fp32 [sum of logit rows][hidden_size].
    void hidden_states(ThreadPool& pool, const std::vector<Part>& parts, float* out);

    // What int8 activations do to each matrix that computes on them: the root mean square over `count` tokens, as one
    // sequence, of the error of its output over that output. Throws as forward().
    std::map<std::string, double> activation_errors(ThreadPool& pool, const int32_t* tokens, int64_t count);

    // Starts timing phases from zero, or stops.
    void profile(bool on);
    PhaseTimes phase_times() const;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace lowbit
