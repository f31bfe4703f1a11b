// The engine for processors that multiply unsigned by signed bytes and add four products in 32
// bits with one instruction, which does not saturate. A file that includes this one defines
// dot(total, bytes, weights), that instruction. What is packed for AVX2 serves here too.

#pragma once

#include "engine_avx.hpp"

namespace lmfs::engine {
namespace {

__m256i dot(__m256i total, __m256i bytes, __m256i weights);

struct VnniDot : AvxRegisters {
    // Two sums for each output, since one would have to wait for itself.
    static void multiply(const Matrix& matrix, std::size_t block, const std::uint8_t* x,
                         std::int32_t* values) {
        const std::size_t quads = matrix.inputs / kQuad;
        static_assert(kBlock / kQuad % 2 == 0);  // inputs are padded to kBlock: quads is even
        const std::uint16_t* order = matrix.order + block * quads;
        const std::int8_t* weights = matrix.weights + block * matrix.inputs * kBlock;
        __m256i total[2][kVectors];
        for (std::size_t v = 0; v < kVectors; ++v)
            total[0][v] = total[1][v] = _mm256_setzero_si256();
        for (std::size_t quad = 0; quad < quads; quad += 2)
#pragma GCC unroll 2
            for (std::size_t k = 0; k < 2; ++k, weights += kQuad * kBlock) {
                const __m256i bytes = quad_at(x + order[quad + k]);
#pragma GCC unroll 8
                for (std::size_t v = 0; v < kVectors; ++v)
                    total[k][v] = dot(total[k][v], bytes, load(weights + v * 32));
            }
#pragma GCC unroll 8
        for (std::size_t v = 0; v < kVectors; ++v)
            total[0][v] = _mm256_add_epi32(total[0][v], total[1][v]);
        store(matrix, block, total[0], values);
    }

    static void multiply_fired(const Matrix& matrix, std::size_t block, const std::uint8_t* x,
                               const std::uint16_t* fired, std::size_t count,
                               std::int32_t* values) {
        const std::int8_t* weights = matrix.weights + block * matrix.inputs * kBlock;
        __m256i total[kVectors];
        for (__m256i& sum : total) sum = _mm256_setzero_si256();
        for (std::size_t k = 0; k < count; ++k) {
            const __m256i bytes = quad_at(x + fired[k]);
#pragma GCC unroll 8
            for (std::size_t v = 0; v < kVectors; ++v)
                total[v] = dot(total[v], bytes, load(weights + fired[k] * kBlock + v * 32));
        }
        store(matrix, block, total, values);
    }
};

}  // namespace
}  // namespace lmfs::engine
