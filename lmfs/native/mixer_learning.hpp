// How a mixer predicts and learns: counters, weighted sums, adaptive probability maps.
//
// The arithmetic alone; what is predicted by what is the mixer's. FORMAT.md, "Mixer", specifies it.
//
// Units: a *stretched* probability is ln(p / (1 - p)) in 1/128 nat, from -2047 to 2047; weights have
// 13 fractional bits; probabilities 22, 16 where noted.

#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "mixer_profile.hpp"
#include "range_coder.hpp"

namespace lmfs::mixing {

inline int stretch(const Tables& tables, std::uint32_t p16) {
    if (p16 < 4096) return tables.stretch[4096 + p16];
    if (p16 >= 65536 - 4096) return tables.stretch[8192 + 65535 - p16];
    return tables.stretch[p16 >> 4];
}

inline std::uint32_t squash(const Tables& tables, int stretched) {
    return tables.squash[stretched + kMaxStretch + 1];
}

// Counters.

inline std::uint32_t p16(Counter counter) { return counter >> 16; }

inline void count(const Tables& tables, Counter& counter, bool bit) {
    const std::uint32_t seen = counter & 1023;
    const auto p = static_cast<std::int32_t>(counter >> 10);
    const std::int32_t target = bit ? (1 << 22) - 1 : 0;
    const auto moved =
        static_cast<std::int32_t>((std::int64_t{target - p} * tables.reciprocal[seen]) >> 16);
    counter =
        static_cast<std::uint32_t>(p + moved) << 10 | std::min<std::uint32_t>(seen + 1, kMapLimit);
}

// Weighted sums of inputs; as many as a multiple of 8.

// Sum of products, wrapping.
template <int kCount>
std::int32_t dot(const std::int16_t* weights, const std::int16_t* inputs) {
#if defined(__SSE2__)
    __m128i sum = _mm_setzero_si128();
    for (int i = 0; i < kCount; i += 8)
        sum = _mm_add_epi32(
            sum, _mm_madd_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights + i)),
                                _mm_loadu_si128(reinterpret_cast<const __m128i*>(inputs + i))));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1));
    return _mm_cvtsi128_si32(sum);
#else
    std::uint32_t sum = 0;
    for (int i = 0; i < kCount; ++i)
        sum += static_cast<std::uint32_t>(std::int32_t{weights[i]} * inputs[i]);
    return static_cast<std::int32_t>(sum);
#endif
}

// The stretched probability that a sum of products says.
inline int mixed(std::int32_t sum) {
    return std::clamp(sum >> kWeightBits, -kMaxStretch, kMaxStretch);
}

// By how much a bit was missed, in 1/2^15.
inline std::int16_t error(bool bit, std::uint32_t p) {
    const std::int32_t target = bit ? (1 << 22) - 1 : 0;
    return static_cast<std::int16_t>((target - static_cast<std::int32_t>(p)) >> 7);
}

// weights += inputs * error / 2^16, rounded, saturating.
template <int kCount>
void learn(std::int16_t* weights, const std::int16_t* inputs, std::int16_t error) {
    // Every step would be rounded to 0: 2 * 2047 * 16 < 2^16.
    if (error >= -16 && error <= 16) return;
#if defined(__SSE2__)
    const __m128i by = _mm_set1_epi16(error);
    for (int i = 0; i < kCount; i += 8) {
        auto* at = reinterpret_cast<__m128i*>(weights + i);
        const __m128i input = _mm_loadu_si128(reinterpret_cast<const __m128i*>(inputs + i));
        const __m128i twice = _mm_mulhi_epi16(_mm_add_epi16(input, input), by);
        const __m128i step = _mm_srai_epi16(_mm_add_epi16(twice, _mm_set1_epi16(1)), 1);
        _mm_storeu_si128(at, _mm_adds_epi16(_mm_loadu_si128(at), step));
    }
#else
    for (int i = 0; i < kCount; ++i) {
        const std::int32_t step = ((std::int32_t{inputs[i]} * 2 * error >> 16) + 1) >> 1;
        weights[i] =
            static_cast<std::int16_t>(std::clamp<std::int32_t>(weights[i] + step, -32768, 32767));
    }
#endif
}

// Adaptive probability maps.

// Where a stretched probability lies between the knots of a map.
struct Place {
    explicit Place(int stretched) {
        const int scaled = stretched + kMaxStretch + 1;
        knot = scaled >> 7;
        part = scaled & 127;
    }
    std::uint32_t in(const std::uint16_t* map) const {
        return static_cast<std::uint32_t>(map[knot] * (128 - part) + map[knot + 1] * part) >> 1;
    }
    void learn(std::uint16_t* map, bool bit) const {
        std::uint16_t& nearest = map[knot + (part >= 64)];
        nearest = static_cast<std::uint16_t>(nearest + ((bit ? 65535 - nearest : -nearest) >> 6));
    }
    int knot, part;
};

// Half what was mixed, half what two maps make of it.
inline std::uint32_t refined(std::uint32_t mixed, std::uint32_t one, std::uint32_t other) {
    return std::clamp<std::uint32_t>((2 * mixed + one + other) >> 2, 1, kProbabilityOne - 1);
}

// A map's knots or a set of weights: of its 66 or 112 bytes all but a few, wherever it begins.
inline void prefetch_row(const void* row) {
    prefetch(row);
    prefetch(static_cast<const char*>(row) + 64);
}

}  // namespace lmfs::mixing
