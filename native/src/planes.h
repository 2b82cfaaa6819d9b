// Code planes of one atom (formats.h): 16 rows x 32 codes <-> whole cache lines. A code is split into planes of 8, 4, 2 and
// 1 bits, low bits first; 4 consecutive codes of a row travel as the bytes of one 32-bit word.
#pragma once
#include <cstring>

#include "lowbit/formats.h"

namespace lowbit::planes {

inline constexpr int kWords = kAtomK / 4;  // 32-bit words of codes per row of an atom

constexpr int64_t plane_bytes(int bits) { return kPanelRows * kAtomK * bits / 8; }

// One plane of P = 8, 4 or 2 bits taken at bit `shift` of every code: line j, lane r, field i = word (8/P) j + i of row r.
template <int P>
void pack_plane(const uint32_t (*words)[kWords], int shift, uint8_t* out) {
    constexpr int per = 8 / P;
    constexpr uint32_t mask = 0x01010101u * ((1u << P) - 1);
    for (int j = 0; j < kWords / per; j++) {
        uint32_t line[kPanelRows];
        for (int r = 0; r < kPanelRows; r++) {
            uint32_t lane = 0;
            for (int i = 0; i < per; i++) lane |= (words[r][per * j + i] >> shift & mask) << (P * i);
            line[r] = lane;
        }
        std::memcpy(out + j * kLine, line, kLine);
    }
}

template <int P>
void unpack_plane(const uint8_t* in, int row, int shift, uint32_t* words) {
    constexpr int per = 8 / P;
    constexpr uint32_t mask = 0x01010101u * ((1u << P) - 1);
    for (int j = 0; j < kWords / per; j++) {
        uint32_t lane;
        std::memcpy(&lane, in + j * kLine + 4 * row, 4);
        for (int i = 0; i < per; i++) words[per * j + i] |= (lane >> (P * i) & mask) << shift;
    }
}

// The 1-bit plane: mask j, bit 4r+b = code 4j+b of row r.
inline void pack_bits(const uint32_t (*words)[kWords], int shift, uint8_t* out) {
    for (int j = 0; j < kWords; j++) {
        uint64_t mask = 0;
        for (int r = 0; r < kPanelRows; r++) {
            const uint32_t four = words[r][j] >> shift & 0x01010101u;
            mask |= static_cast<uint64_t>(four * 0x01020408u >> 24) << (4 * r);  // gathers the four low bits
        }
        std::memcpy(out + 8 * j, &mask, 8);
    }
}

inline void unpack_bits(const uint8_t* in, int row, int shift, uint32_t* words) {
    for (int j = 0; j < kWords; j++) {
        uint64_t mask;
        std::memcpy(&mask, in + 8 * j, 8);
        const uint32_t four = static_cast<uint32_t>(mask >> (4 * row)) & 15u;
        words[j] |= (four * 0x00204081u & 0x01010101u) << shift;  // spreads them again
    }
}

// Writes one atom; codes of row r start at codes + r * stride.
inline void pack_atom(int bits, const uint8_t* codes, int64_t stride, uint8_t* out) {
    uint32_t words[kPanelRows][kWords];
    for (int r = 0; r < kPanelRows; r++) std::memcpy(words[r], codes + r * stride, kAtomK);
    int shift = 0;
    if (bits & 8) pack_plane<8>(words, shift, out), out += plane_bytes(8), shift += 8;
    if (bits & 4) pack_plane<4>(words, shift, out), out += plane_bytes(4), shift += 4;
    if (bits & 2) pack_plane<2>(words, shift, out), out += plane_bytes(2), shift += 2;
    if (bits & 1) pack_bits(words, shift, out);
}

// Reads the 32 codes of one row of an atom.
inline void unpack_atom_row(int bits, const uint8_t* in, int row, uint8_t* codes) {
    uint32_t words[kWords] = {};
    int shift = 0;
    if (bits & 8) unpack_plane<8>(in, row, shift, words), in += plane_bytes(8), shift += 8;
    if (bits & 4) unpack_plane<4>(in, row, shift, words), in += plane_bytes(4), shift += 4;
    if (bits & 2) unpack_plane<2>(in, row, shift, words), in += plane_bytes(2), shift += 2;
    if (bits & 1) unpack_bits(in, row, shift, words);
    std::memcpy(codes, words, kAtomK);
}

}  // namespace lowbit::planes
