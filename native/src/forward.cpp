// Interprets a ModelSpec: the order of phases of a forward pass, separated by team barriers.
#include "forward.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "lowbit/pack.h"

namespace lowbit {
namespace {

// One thread's walk through the phases. Everything it reads is shared; `mark` ends a phase.
class Pass {
public:
    Pass(const Engine& e, Team& team, const Chunk& chunk)
        : e_(e),
          s_(e.spec),
          w_(e.weights),
          k_(e.kernels),
          b_(e.scratch),
          team_(team),
          chunk_(chunk),
          rows_(static_cast<int64_t>(chunk.rows.size())),
          last_(Clock::now()) {}

    void run() {
        embed();
        for (int64_t i = 0; i < s_.layers; i++) {
            const LayerWeights& w = w_.layers[i];
            if (s_.residual == Residual::sequential)
                sequential(i, w);
            else
                parallel(i, w);
        }
        if (!chunk_.logit_rows.empty()) head();
    }

private:
    using Clock = std::chrono::steady_clock;

    // Ends a phase: all members have finished it. Member 0 keeps the time.
    void mark(Phase phase) {
        team_.barrier();
        if (e_.times && team_.id() == 0) {
            const auto now = Clock::now();
            e_.times->seconds[static_cast<int>(phase)] += std::chrono::duration<double>(now - last_).count();
            last_ = now;
        }
    }

    void norm(const Norm& n, const float* x, float* y) const {
        if (s_.norm == NormKind::rms)
            k_.vector.rms_norm(x, n.weight, s_.norm_weight_offset, s_.norm_eps, s_.hidden_size, y);
        else
            k_.vector.layer_norm(x, n.weight, n.bias, s_.norm_weight_offset, s_.norm_eps, s_.hidden_size, y);
    }

    void product(const Matrix& m, const LinearInput& in, const OutputBuffer& out) {
        if (e_.probe)
            e_.probe->product(team_, k_, m, m.bias, in, out.data, out.stride);
        else
            linear(team_, k_, *m.weight, m.bias, m.reads(in), out.data, out.stride);
    }

    void embed() {
        const Team::Range mine = team_.slice(rows_);
        const bool projected = static_cast<bool>(w_.embedding_in);
        const LinearInput word = b_.word.input(rows_);
        for (int64_t r = mine.begin; r < mine.end; r++) {
            float* to = projected ? b_.word.row(r) : b_.x.row(r);
            gather_rows(*w_.embedding.weight, &chunk_.rows[r].token, 1, to, 0);
            if (projected) quantize_columns(k_, word, r, 0, word.k);
        }
        fill_ropes(team_, s_, chunk_, b_.ropes);
        if (projected) {
            mark(Phase::embed);
            product(w_.embedding_in, word, b_.x);
            mark(Phase::embed);
        }
        for (int64_t r = mine.begin; r < mine.end; r++) {
            float* x = b_.x.row(r);
            if (s_.embedding_scale != 1.0f)
                for (int64_t i = 0; i < s_.hidden_size; i++) x[i] *= s_.embedding_scale;
            if (w_.position_embedding) {
                const int32_t at = static_cast<int32_t>(chunk_.rows[r].position + s_.learned_position_offset);
                float* row = b_.attention_delta.row(r);
                gather_rows(*w_.position_embedding.weight, &at, 1, row, 0);
                k_.vector.add(x, row, 1.0f, s_.hidden_size);
            }
            if (w_.has_embedding_norm) norm(w_.embedding_norm, x, x);
        }
        mark(Phase::embed);
    }

    // x += f for one row, `f` being the output of attention or MLP, with the norms that stand around the addition.
    void add_residual(int64_t r, const OutputBuffer& f, const Norm& before_or_post) {
        float *x = b_.x.row(r), *delta = f.row(r);
        if (s_.norm_place == NormPlace::sandwich) norm(before_or_post, delta, delta);
        k_.vector.add(x, delta, s_.residual_scale, s_.hidden_size);
        if (s_.norm_place == NormPlace::post) norm(before_or_post, x, x);
    }

    // The input of a block: norm(x), or x itself where norms stand after the blocks.
    void enter(int64_t r, const Norm& n, const InputBuffer& to, const LinearInput& in) {
        if (s_.norm_place == NormPlace::post)
            std::copy_n(b_.x.row(r), s_.hidden_size, to.row(r));
        else
            norm(n, b_.x.row(r), to.row(r));
        quantize_columns(k_, in, r, 0, s_.hidden_size);
    }

    const Norm& after_attention(const LayerWeights& w) const {
        return s_.norm_place == NormPlace::post ? w.attention_norm : w.attention_post_norm;
    }
    const Norm& after_ffn(const LayerWeights& w) const {
        return s_.norm_place == NormPlace::post ? w.ffn_norm : w.ffn_post_norm;
    }

    void attention(int64_t layer, const LayerWeights& w, const LinearInput& attended) {
        const AttentionContext c{s_, k_, w, layer, chunk_, b_, attended};
        rotate_and_store(team_, c);
        mark(Phase::rotate);
        attend(team_, c);
        if (chunk_.span_floats) {
            mark(Phase::attention);
            merge_spans(team_, c);
        }
        if (!attended_is_quantized(s_)) {
            mark(Phase::attention);
            for_share(team_, rows_, attended.k, kActivationK,
                      [&](int64_t r, int64_t begin, int64_t end) { quantize_columns(k_, attended, r, begin, end); });
        }
        mark(Phase::attention);
    }

    void activate(const LinearInput& activated) {
        for_share(team_, rows_, s_.ffn_size, 4 * kActivationK, [&](int64_t r, int64_t begin, int64_t end) {
            float* to = b_.activated.row(r) + begin;
            if (s_.gated)
                k_.vector.activate_gated(s_.activation, b_.up.row(r) + 2 * begin, end - begin, to);
            else
                k_.vector.activate(s_.activation, b_.up.row(r) + begin, end - begin, to);
            quantize_columns(k_, activated, r, begin, end);
        });
    }

    void sequential(int64_t layer, const LayerWeights& w) {
        const LinearInput normed = b_.normed.input(rows_), attended = b_.attended.input(rows_),
                          activated = b_.activated.input(rows_);
        const Team::Range mine = team_.slice(rows_);
        for (int64_t r = mine.begin; r < mine.end; r++) {
            if (layer > 0) add_residual(r, b_.ffn_delta, after_ffn(w_.layers[layer - 1]));
            enter(r, w.attention_norm, b_.normed, normed);
        }
        mark(Phase::norm);
        product(w.qkv, normed, b_.qkv);
        mark(Phase::qkv);
        attention(layer, w, attended);
        product(w.o, attended, b_.attention_delta);
        mark(Phase::o);
        for (int64_t r = mine.begin; r < mine.end; r++) {
            add_residual(r, b_.attention_delta, after_attention(w));
            enter(r, w.ffn_norm, b_.normed, normed);
        }
        mark(Phase::norm);
        product(w.up, normed, b_.up);
        mark(Phase::up);
        activate(activated);
        mark(Phase::activate);
        product(w.down, activated, b_.ffn_delta);
        mark(Phase::down);
    }

    void parallel(int64_t layer, const LayerWeights& w) {
        const bool separate = s_.residual == Residual::parallel_separate;
        const LinearInput normed = b_.normed.input(rows_), attended = b_.attended.input(rows_),
                          activated = b_.activated.input(rows_);
        const LinearInput ffn_normed = separate ? b_.ffn_normed.input(rows_) : normed;
        const Team::Range mine = team_.slice(rows_);
        for (int64_t r = mine.begin; r < mine.end; r++) {
            if (layer > 0) finish_parallel(r, w_.layers[layer - 1]);
            enter(r, w.attention_norm, b_.normed, normed);
            if (separate) enter(r, w.ffn_norm, b_.ffn_normed, ffn_normed);
        }
        mark(Phase::norm);
        product(w.qkv, normed, b_.qkv);
        product(w.up, ffn_normed, b_.up);
        mark(Phase::qkv);
        activate(activated);
        attention(layer, w, attended);
        product(w.o, attended, b_.attention_delta);
        product(w.down, activated, b_.ffn_delta);
        mark(Phase::down);
    }

    void finish_parallel(int64_t r, const LayerWeights& w) {
        add_residual(r, b_.attention_delta, after_attention(w));
        add_residual(r, b_.ffn_delta, after_ffn(w));
    }

    void head() {
        const int64_t wanted = static_cast<int64_t>(chunk_.logit_rows.size());
        const LayerWeights& last = w_.layers.back();
        const LinearInput normed = b_.normed.input(wanted);
        const Team::Range mine = team_.slice(wanted);
        for (int64_t i = mine.begin; i < mine.end; i++) {
            const int64_t r = chunk_.logit_rows[i];
            if (s_.residual == Residual::sequential)
                add_residual(r, b_.ffn_delta, after_ffn(last));
            else
                finish_parallel(r, last);
            if (s_.final_norm)
                norm(w_.final_norm, b_.x.row(r), b_.normed.row(i));
            else
                std::copy_n(b_.x.row(r), s_.hidden_size, b_.normed.row(i));
            quantize_columns(k_, normed, i, 0, s_.hidden_size);
        }
        mark(Phase::norm);
        if (chunk_.hidden) {
            for (int64_t i = mine.begin; i < mine.end; i++)
                std::copy_n(b_.normed.row(i), s_.hidden_size, chunk_.out + i * s_.hidden_size);
            mark(Phase::head);
            return;
        }
        LinearInput in = normed;
        if (w_.head_in) {
            in = b_.word.input(wanted);
            product(w_.head_in, normed, {b_.word.data, b_.word.stride});
            mark(Phase::head);
            for_share(team_, wanted, in.k, kActivationK,
                      [&](int64_t r, int64_t begin, int64_t end) { quantize_columns(k_, in, r, begin, end); });
            mark(Phase::head);
        }
        const int64_t vocab = s_.vocab_size;
        const bool direct = vocab % kPanelRows == 0;  // else linear() needs room for whole panels behind each row
        for (int64_t first = 0; first < wanted; first += kHeadRows) {
            const int64_t count = std::min(kHeadRows, wanted - first);
            const OutputBuffer out = direct ? OutputBuffer{chunk_.out + first * vocab, vocab} : b_.logits;
            product(w_.head, rows_of(in, first, count), out);
            mark(Phase::head);
            if (direct && s_.logit_scale == 1.0f && s_.logit_softcap == 0.0f) continue;
            for_share(team_, count, vocab, 1024, [&](int64_t r, int64_t begin, int64_t end) {
                const float* from = out.row(r);
                float* to = chunk_.out + (first + r) * vocab;
                for (int64_t i = begin; i < end; i++) to[i] = from[i] * s_.logit_scale;
                if (s_.logit_softcap != 0.0f)
                    for (int64_t i = begin; i < end; i++)
                        to[i] = s_.logit_softcap * std::tanh(to[i] / s_.logit_softcap);
            });
            mark(Phase::head);
        }
    }

    const Engine& e_;
    const ModelSpec& s_;
    const ResolvedWeights& w_;
    const KernelTable& k_;
    const Scratch& b_;
    Team& team_;
    const Chunk& chunk_;
    const int64_t rows_;
    Clock::time_point last_;
};

}  // namespace

void run_chunk(Team& team, const Engine& engine, const Chunk& chunk) { Pass(engine, team, chunk).run(); }

}  // namespace lowbit
