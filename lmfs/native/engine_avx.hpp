// What the kernels for registers of 256 bits share: their tile, and how operands come into them.

#pragma once

#include <immintrin.h>

#include "engine_kernel.hpp"

namespace lmfs::engine {
namespace {

struct AvxRegisters {
    static constexpr std::size_t kTile = 1;
    static constexpr std::size_t kVectors = kBlock / 8;

    static __m256i load(const void* data) {
        return _mm256_loadu_si256(static_cast<const __m256i*>(data));
    }

    // Four activations, in every lane.
    static __m256i quad_at(const std::uint8_t* x) {
        std::int32_t quad;
        __builtin_memcpy(&quad, x, sizeof quad);
        return _mm256_set1_epi32(quad);
    }
};

}  // namespace
}  // namespace lmfs::engine
