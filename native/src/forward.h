// One forward pass as its phases see it: which row is which token of which session, and where activations live.
#pragma once
#include <vector>

#include "buffers.h"
#include "decoder_weights.h"
#include "probe.h"

namespace lowbit {

struct Row {
    KvCache* cache;
    int32_t token;
    int64_t position;
};

// Rows of one part that stand together in a chunk.
struct Segment {
    int64_t first_row, rows, first_position;
    KvCache* cache;
    int64_t spans = 0;        // attention of its rows is cut into so many spans of keys, 0: not cut
    int64_t span_floats = 0;  // where their results begin in Scratch::spans
};

// A bounded number of rows that go through all layers together.
struct Chunk {
    std::vector<Row> rows;
    std::vector<Segment> segments;
    std::vector<int64_t> logit_rows;  // rows of this chunk whose logits are wanted, ascending
    bool hidden = false;              // final hidden states are wanted instead
    float* out = nullptr;             // of the first of them
    int64_t span_floats = 0;          // that its segments need together
};

// cos and sin of the rows of a chunk, [rope][row][dim/2 cos, dim/2 sin].
struct RopeTables {
    float* data = nullptr;
    int64_t row_stride = 0, rope_stride = 0;

    float* at(int rope, int64_t row) const { return data + rope * rope_stride + row * row_stride; }
};

inline constexpr int64_t kHeadRows = 64;  // rows of logits computed at once where they need a padded copy

struct Scratch {
    Reservation memory;
    int64_t rows = 0;
    int threads = 0;
    OutputBuffer x, attention_delta, ffn_delta, qkv, up, logits;
    InputBuffer normed, ffn_normed, attended, activated, word;
    RopeTables ropes;
    float* attention = nullptr;  // attention_floats() per thread
    int64_t attention_stride = 0;
    float* spans = nullptr;  // span_floats
    int64_t span_floats = 0;
};

// What all chunks of a pass share.
struct Engine {
    const ModelSpec& spec;
    const ResolvedWeights& weights;
    const KernelTable& kernels;
    const Scratch& scratch;
    PhaseTimes* times;  // null unless profiling
    Probe* probe;       // null unless measuring
};

// Collective: all layers, then the logits asked for. Ends with a barrier. (forward.cpp)
void run_chunk(Team& team, const Engine& engine, const Chunk& chunk);

// ---- attention.cpp ----

struct AttentionContext {
    const ModelSpec& spec;
    const KernelTable& kernels;
    const LayerWeights& weights;
    int64_t layer;
    const Chunk& chunk;
    const Scratch& scratch;
    const LinearInput& attended;
};

int64_t attention_floats(const ModelSpec& spec);  // scratch of one thread

// Collective, no barrier inside. Fills the rope tables of a chunk.
void fill_ropes(const Team& team, const ModelSpec& spec, const Chunk& chunk, const RopeTables& tables);

// Collective, no barrier inside. From projected q, k, v: clipping, q and k norms, rotation, scaling of q; writes k and
// v to the caches.
void rotate_and_store(const Team& team, const AttentionContext& c);

// Cuts the attention of a segment into spans where that helps; returns how many floats their results take, which begin
// at `floats` of Scratch::spans. Decided by the tokens of its part alone: logits do not depend, to the last bit, on who
// else shares a pass.
int64_t plan_spans(const ModelSpec& spec, int64_t part_tokens, Segment& segment, int64_t floats);

// Heads that are whole groups of 32 are quantised by those who compute them, other widths afterwards by the caller.
inline bool attended_is_quantized(const ModelSpec& spec) { return spec.head_dim % kActivationK == 0; }

// Collective, no barrier inside. Attention of all rows into scratch.attended, except that segments with spans end in
// scratch.spans, from where merge_spans (after a barrier, collective too) takes them.
void attend(const Team& team, const AttentionContext& c);
void merge_spans(const Team& team, const AttentionContext& c);

}  // namespace lowbit
