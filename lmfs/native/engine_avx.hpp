// What the kernels for registers of 256 bits share: their tile, and how operands come into them.

#pragma once

#include <immintrin.h>

#include "engine_kernel.hpp"

namespace lmfs::engine {
namespace {

struct AvxRegisters {
    static constexpr std::size_t kVectors = kBlock / 8;

    static __m256i load(const void* data) {
        return _mm256_loadu_si256(static_cast<const __m256i*>(data));
    }

    // The results of a block from its sums, in eights.
    static void store(const Matrix& matrix, std::size_t block, const __m256i* total,
                      std::int32_t* values) {
#pragma GCC unroll 8
        for (std::size_t v = 0; v < kVectors; ++v) {
            const std::size_t output = block * kBlock + v * 8;
            const __m256i shifted = _mm256_sllv_epi32(total[v], load(matrix.left + output));
            const __m256i sum = _mm256_add_epi32(shifted, load(matrix.bias + output));
            _mm256_store_si256(reinterpret_cast<__m256i*>(values + v * 8),
                               _mm256_srav_epi32(sum, load(matrix.right + output)));
        }
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
