// bf16 weights times bf16 activations by vdpbf16ps; for codes see linear_bf16_codes.cpp. Files with bf16 in their names are compiled with
// -mavx512bf16; nothing in them may run before the feature bit was seen. A line of an atom is what the instruction takes, two k of 16
// rows, so nothing is unpacked. Every output is one sum over all k in their order: a row's result does not depend on the rows beside it.

// gcc's own AVX-512 headers pass an uninitialised vector where nothing is merged (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "avx512/linear.h"
#include "lowbit/codebooks.h"

namespace lowbit::avx512 {
namespace {

#include "shared/tables.h"

#include "avx512/lanes-inl.h"

#include "shared/strips-inl.h"

constexpr int kStep = 4;                // lines of a panel at a time
constexpr int kBlockLines = 8 * kAtomK / 2;  // of three panels: 24 KB, which stay in L1 while all rows are multiplied with them
constexpr int kTileRows = 8;

// sum[i][p] += products of `lines` lines of P panels with M rows. fetch(p, line) is called for every line.
template <int M, int P, class Fetch>
ALWAYS_INLINE void add_lines(const uint8_t* const (&panel)[P], const uint16_t* const (&rows)[M], int64_t lines, __m512 (&sum)[M][P],
                             Fetch fetch) {
    const uint8_t* line[P];
    const uint16_t* x[M];
    UNROLL for (int p = 0; p < P; p++) line[p] = panel[p];
    UNROLL for (int i = 0; i < M; i++) x[i] = rows[i];
    for (int64_t at = 0; at < lines; at += kStep) {
        UNROLL for (int j = 0; j < kStep; j++) {
            __m512bh w[P];
            UNROLL for (int p = 0; p < P; p++) {
                fetch(line[p] + j * kLine);
                w[p] = (__m512bh)load_quad(line[p] + j * kLine);
            }
            UNROLL for (int i = 0; i < M; i++) {
                const auto pair = (__m512bh)broadcast_pair(x[i] + 2 * j);
                UNROLL for (int p = 0; p < P; p++) sum[i][p] = _mm512_dpbf16_ps(sum[i][p], w[p], pair);
            }
        }
        UNROLL for (int p = 0; p < P; p++) line[p] += kStep * kLine;
        UNROLL for (int i = 0; i < M; i++) x[i] += 2 * kStep;
    }
}

int64_t lines_of(const Layout& l) { return l.k_padded / 2; }

// Up to M rows (of fewer, the last is multiplied several times) by P panels side by side, of which those behind `last` repeat it.
template <int M, int P>
void block(const PackedView& w, int64_t first, int64_t last, const uint16_t* const (&rows)[M], int m, float* y, int64_t y_stride) {
    const uint8_t* panel[P];
    UNROLL for (int p = 0; p < P; p++) panel[p] = w.panel(first + p < last ? first + p : last);
    __m512 sum[M][P];
    UNROLL for (int i = 0; i < M; i++)
        UNROLL for (int p = 0; p < P; p++) sum[i][p] = _mm512_setzero_ps();
    const int64_t lines = lines_of(w.layout), near_end = kPrefetchBytes / kLine < lines ? lines - kPrefetchBytes / kLine : 0;
    const auto add = [&](int64_t begin, int64_t end, int64_t ahead) INLINE_LAMBDA {
        const uint8_t* from[P];
        const uint16_t* x[M];
        UNROLL for (int p = 0; p < P; p++) from[p] = panel[p] + begin * kLine;
        UNROLL for (int i = 0; i < M; i++) x[i] = rows[i] + 2 * begin;
        add_lines<M, P>(from, x, end - begin, sum, [&](const uint8_t* at) INLINE_LAMBDA { prefetch(at + ahead); });
    };
    add(0, near_end, kPrefetchBytes);
    // Past the end of a panel, its stream goes on in the panel that takes this one's place in the next block.
    add(near_end, lines, kPrefetchBytes + (P - 1) * w.layout.panel_bytes);
    const __m512 multiplier = _mm512_set1_ps(w.multiplier);
    UNROLL for (int p = 0; p < P; p++) {
        if (first + p > last) break;
        UNROLL for (int i = 0; i < M; i++)
            if (i < m) _mm512_storeu_ps(y + i * y_stride + (first + p) * kPanelRows, _mm512_mul_ps(sum[i][p], multiplier));
    }
}

template <int M>
void blocks(const PackedView& w, int64_t first_panel, int64_t panels, const HalfRows& x, int64_t first_row, int m, float* y,
            int64_t y_stride) {
    constexpr int P = M <= 4 ? 4 : 3;
    const uint16_t* rows[M];
    for (int i = 0; i < M; i++) rows[i] = x.data + (first_row + (i < m ? i : m - 1)) * x.stride;
    for (int64_t p = 0; p < panels; p += P) block<M, P>(w, first_panel + p, first_panel + panels - 1, rows, m, y, y_stride);
}

void few(const PackedView& w, int64_t first_panel, int64_t panels, const HalfRows& x, int64_t first_row, int m, float* y,
         int64_t y_stride) {
    if (m <= 1) blocks<1>(w, first_panel, panels, x, first_row, m, y, y_stride);
    else if (m <= 2) blocks<2>(w, first_panel, panels, x, first_row, m, y, y_stride);
    else if (m <= 4) blocks<4>(w, first_panel, panels, x, first_row, m, y, y_stride);
    else blocks<8>(w, first_panel, panels, x, first_row, m, y, y_stride);
}

// kTileRows rows by a block of lines of P panels; the sums so far, of which y hands on those of earlier blocks.
template <int P>
__attribute__((noinline)) void tile(const uint8_t* const (&panel)[P], int64_t lines, const uint16_t* x, int64_t x_stride, bool begins,
                                    float multiplier, float* y, int64_t y_stride) {
    const uint16_t* rows[kTileRows];
    __m512 sum[kTileRows][P];
    UNROLL for (int i = 0; i < kTileRows; i++) {
        rows[i] = x + i * x_stride;
        UNROLL for (int p = 0; p < P; p++) sum[i][p] = begins ? _mm512_setzero_ps() : _mm512_loadu_ps(y + i * y_stride + p * kPanelRows);
    }
    add_lines<kTileRows, P>(panel, rows, lines, sum, [](const uint8_t*) INLINE_LAMBDA {});
    UNROLL for (int i = 0; i < kTileRows; i++)
        UNROLL for (int p = 0; p < P; p++)
            _mm512_storeu_ps(y + i * y_stride + p * kPanelRows, _mm512_mul_ps(sum[i][p], _mm512_set1_ps(multiplier)));
}

template <int P>
void strip(const PackedView& w, int64_t first, const HalfRows& x, int64_t first_row, int64_t m, float* y, int64_t y_stride) {
    const int64_t all = lines_of(w.layout);
    for (int64_t done = 0, lines; done < all; done += lines) {
        lines = all - done < kBlockLines ? all - done : kBlockLines;
        const uint8_t* panel[P];
        UNROLL for (int p = 0; p < P; p++) panel[p] = w.panel(first + p) + done * kLine;
        // What comes next, of the same panels or those of the next strip, is fetched while the rows are multiplied.
        const bool ends = done + lines == all;
        const int64_t ahead = ends ? P * w.layout.panel_bytes - done * kLine : lines * kLine, tiles = m / kTileRows;
        const int64_t per_tile = (lines + tiles - 1) / tiles;
        int64_t fetched = 0;
        for (int64_t row = 0; row < m; row += kTileRows) {
            for (int64_t i = 0; i < per_tile && fetched < lines; i++, fetched++)
                UNROLL for (int p = 0; p < P; p++) prefetch(panel[p] + ahead + fetched * kLine);
            tile<P>(panel, lines, x.data + (first_row + row) * x.stride + 2 * done, x.stride, done == 0, ends ? w.multiplier : 1.0f,
                    y + row * y_stride + first * kPanelRows, y_stride);
        }
    }
}

void many(const PackedView& w, int64_t first_panel, int64_t panels, const HalfRows& x, int64_t first_row, int64_t m, float* y,
          int64_t y_stride, uint8_t*) {
    for_strips<3>(first_panel, panels, [&](int64_t panel, auto number) INLINE_LAMBDA {
        strip<decltype(number)::value>(w, panel, x, first_row, m, y, y_stride);
    });
}

}  // namespace

void add_bf16_weights(LinearKernels& k) {
    k.bf16[static_cast<int>(FormatId::bf16)] = few;
    k.bf16_many[static_cast<int>(FormatId::bf16)] = many;
}

}  // namespace lowbit::avx512
