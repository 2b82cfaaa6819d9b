// The encoder: an EncoderSpec interpreted over immutable weights. Texts of a call are packed: their rows stand one
// after the other without padding, and every text attends to itself only.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lowbit/linear.h"
#include "lowbit/phases.h"
#include "lowbit/spec.h"
#include "lowbit/weights.h"

namespace lowbit {

// Token ids of all texts, one after the other; text i has tokens [ends[i - 1], ends[i]).
struct Texts {
    const int32_t* tokens;
    const int32_t* types;  // token type of every token, or null: all 0
    const int64_t* ends;
    int64_t count;
};

class Encoder {
public:
    // Checks that every tensor the spec asks for is there with the right shape; throws std::invalid_argument naming it.
    // The kernels outlive this.
    Encoder(EncoderSpec spec, Weights weights, Compute compute, const KernelTable& kernels);
    ~Encoder();

    const EncoderSpec& spec() const;

    // The three passes differ in what they write, fp32. All check everything first: std::invalid_argument for an empty
    // text, token ids or types out of range or a classifier that is not there, std::length_error for a text longer than
    // the learned positions, std::bad_alloc when there is no memory for activations. Safe from any thread: calls queue.
    void hidden_states(ThreadPool& pool, const Texts& texts, float* out);  // [tokens][hidden_size]
    void embed(ThreadPool& pool, const Texts& texts, const std::vector<Pooling>& poolings,
               float* out);                                           // [texts][poolings][hidden_size]
    void classify(ThreadPool& pool, const Texts& texts, float* out);  // [texts][labels], logits

    // As Decoder::activation_errors(), over texts.
    std::map<std::string, double> activation_errors(ThreadPool& pool, const Texts& texts);

    // Starts timing phases from zero, or stops.
    void profile(bool on);
    PhaseTimes phase_times() const;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace lowbit
