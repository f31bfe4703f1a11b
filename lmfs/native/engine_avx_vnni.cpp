// The engine for AVX-VNNI: one instruction multiplies unsigned by signed bytes and adds four products
// in 32 bits, and does not saturate.

#include "engine_avx.hpp"
#include "engine_isa.hpp"

namespace lmfs::engine {
namespace {

struct VnniDot : AvxRegisters {
    // Two sums for each output, since one would have to wait for itself.
    static constexpr std::size_t kRowsTogether = 1;
    static constexpr std::size_t kDenseFrom = kRows + 1;

    template <std::size_t Rows>
    static void multiply(const Matrix& matrix, std::size_t block, const std::uint8_t* x,
                         std::size_t, std::int32_t (*values)[kBlock]) {
        const std::size_t quads = matrix.inputs / kQuad;
        static_assert(kBlock / kQuad % 2 == 0);  // inputs are padded to kBlock: quads is even
        const std::int8_t* weights = matrix.weights + block * matrix.inputs * kBlock;
        __m256i total[2][kVectors];
        for (std::size_t v = 0; v < kVectors; ++v)
            total[0][v] = total[1][v] = _mm256_setzero_si256();
        for (std::size_t quad = 0; quad < quads; quad += 2)
#pragma GCC unroll 2
            for (std::size_t k = 0; k < 2; ++k, weights += kQuad * kBlock) {
                const __m256i bytes = quad_at(x + (quad + k) * kQuad);
#pragma GCC unroll 8
                for (std::size_t v = 0; v < kVectors; ++v)
                    total[k][v] = _mm256_dpbusd_avx_epi32(total[k][v], bytes, load(weights + v * 32));
            }
#pragma GCC unroll 8
        for (std::size_t v = 0; v < kVectors; ++v)
            total[0][v] = _mm256_add_epi32(total[0][v], total[1][v]);
        store(matrix, block, total[0], *values);
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
                total[v] = _mm256_dpbusd_avx_epi32(total[v], bytes, load(weights + fired[k] * kBlock + v * 32));
        }
        store(matrix, block, total, values);
    }
};

}  // namespace

void run_avx_vnni(const Work& work) { run<VnniDot>(work); }

}  // namespace lmfs::engine
