// All int8 products in tiles: the body of the amx tier and of its model, which differ in their tile_ops-inl.h alone.

#include "shared/tables.h"

#include "avx512/lanes-inl.h"

#include "shared/linear-inl.h"

// Weights as signed bytes, since the tile instruction takes both sides signed.
template <FormatId id>
inline Quad to_integers(Quad codes) {
    if constexpr (kFormat<id>.codes == Codes::kCodebook) return look_up<id, 0>(codes);
    return _mm512_sub_epi8(codes, _mm512_set1_epi8(static_cast<char>(kFormat<id>.offset)));
}

constexpr int kTileRows = kTileBlockRows, kTileVectors = 2, kStripPanels = 2;
constexpr int kIntegerBlockK = 512;  // 16 KB for two panels
#include "shared/many-inl.h"

template <FormatId id>
constexpr FormatId kLike = kFormat<id>.has_min ? FormatId::asym_int4 : FormatId::sym_int4;

#include "shared/tiles-inl.h"

#include "shared/int8_many-inl.h"

template <FormatId id>
void product_tiles(const PackedView& w, int64_t first_panel, int64_t panels, const QuantizedRows& x, int64_t first_row, int64_t m,
                   float* y, int64_t y_stride, uint8_t* scratch) {
    configure_tiles(sums_pairs(w.layout));
    product_many<Int8Many<id>, id>(w, first_panel, panels, x, first_row, m, y, y_stride, scratch);
    tile_release();
}

template <FormatId id>
void add_tiles_format(LinearKernels& k) {
    if constexpr (kHasInt8<id>) k.int8_many[static_cast<int>(id)] = product_tiles<id>;
}

LinearKernels all_tiles() {
    LinearKernels k{};
    k.tiles = true;
#define X(name, ...) add_tiles_format<FormatId::name>(k);
    LOWBIT_FORMATS(X)
#undef X
    return k;
}
