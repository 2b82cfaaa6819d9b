// One pass of the encoder as its phases see it: which rows are which text, and where activations live.
#pragma once
#include <vector>

#include "buffers.h"
#include "find_weights.h"
#include "lowbit/encoder.h"
#include "probe.h"

namespace lowbit {

struct EncoderLayer {
    Norm attention_norm, ffn_norm;  // attention_norm.weight null: none (the first layer of ModernBERT)
    Matrix qkv, o, up, down;        // `up` is gate_up in a gated MLP
};

struct EncoderWeights {
    Matrix embedding, position_embedding, token_type_embedding, head_dense, head;
    Norm embedding_norm, final_norm, head_norm;
    std::vector<EncoderLayer> layers;
    std::vector<float> relative_bias;  // [heads][relative_buckets]: what is added to a score, by key - query
};

// Throws std::invalid_argument naming the field, or the tensor with the shape it has and the shape it should have.
EncoderWeights resolve_weights(const EncoderSpec& spec, const Weights& weights);

// A text's rows in a chunk; row i of it is position i.
struct TextRows {
    int64_t first_row, rows;
    int64_t first_token;  // in the call
    int64_t index;        // of the text in the call
};

// Texts that go through all layers together.
struct TextChunk {
    std::vector<TextRows> texts;
    int64_t rows = 0, longest = 0;  // longest: text
};

// cos and sin by position, [rope][position][dim/2 cos, dim/2 sin]; kept between calls.
struct PositionTables {
    std::vector<std::vector<float>> ropes;
    int64_t positions = 0;

    void reach(const EncoderSpec& spec, int64_t count);  // makes room for positions below count
    const float* at(const EncoderSpec& spec, int rope, int64_t position) const {
        return ropes[rope].data() + position * spec.ropes[rope].dim;
    }
};

// Rows that pass the MLP together: its wide buffers stay in L2 (512 took about 5 % more CPU time on bge-small).
inline constexpr int64_t kFfnRows = 128;

// Columns of the MLP's inner layer that a member alone computes before it activates them.
inline constexpr int64_t kFfnColumns = 256;

struct EncoderScratch {
    Reservation memory;
    int64_t rows = 0, longest = 0;  // longest: text
    int threads = 0;
    bool alone = false;           // a member's own: qkv holds some heads at a time, up kFfnColumns columns
    OutputBuffer qkv, delta, up;  // of a team, up and activated have at most kFfnRows rows
    InputBuffer x, normed, attended, activated;
    float* attention = nullptr;  // attention_floats() per thread
    int64_t attention_stride = 0;
};

// What a pass is to write.
struct EncoderOutput {
    enum class Kind { hidden, pooled, scores } kind;
    const std::vector<Pooling>* poolings;
    float* data;
};

struct EncoderEngine {
    const EncoderSpec& spec;
    const EncoderWeights& weights;
    const KernelTable& kernels;
    const EncoderScratch& scratch;
    const PositionTables& positions;
    const Texts& texts;
    const EncoderOutput& output;
    PhaseTimes* times;  // null unless profiling
    Probe* probe;       // null unless measuring
};

// Collective: all layers of a chunk, then its output. Ends with a barrier. (encoder_forward.cpp)
void run_chunk(Team& team, const EncoderEngine& engine, const TextChunk& chunk);

// ---- encoder_attention.cpp ----

int64_t attention_floats(const EncoderSpec& spec, int64_t longest);  // scratch of one thread

// Collective, no barrier inside. Attention of all rows into scratch.attended.
void attend(const Team& team, const EncoderEngine& engine, const TextChunk& chunk, int64_t layer);

// Heads whose columns are whole groups of activations together, or all heads.
int64_t heads_together(const EncoderSpec& spec);

// By one member alone: `heads` heads from `first_head`, whose q, k and v stand beside each other in scratch.qkv, each
// heads_together() heads wide. The results take the place of q.
void attend_heads(const EncoderEngine& engine, const TextChunk& chunk, int64_t layer, int64_t first_head, int64_t heads);

}  // namespace lowbit
