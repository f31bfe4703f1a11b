// The engine for AVX2. The instruction that multiplies unsigned by signed bytes adds two products
// in 16 bits, with saturation: weights in [-64, 63] keep that exact (2 * 255 * 64 < 2^15), and
// the packer finds groups of quads whose whole sum is bounded too (engine_pack.hpp).

#include <immintrin.h>

#include "engine_isa.hpp"
#include "engine_kernel.hpp"

namespace lmfs::engine {
namespace {

struct Avx2Dot {
    static constexpr std::size_t kTile = 4;

    static __m256i load(const std::int8_t* weights) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights));
    }

    static __m256i quad_of(const std::uint8_t* x) {
        std::int32_t quad;
        __builtin_memcpy(&quad, x, sizeof quad);
        return _mm256_set1_epi32(quad);
    }

    template <std::size_t Rows>
    static void tile(const Matrix& matrix, std::size_t block, const std::uint8_t* x,
                     std::size_t stride, std::int32_t (*sums)[kBlock]) {
        const std::size_t quads = matrix.inputs / kQuad;
        const std::size_t grouped = matrix.grouped[block];
        const std::uint16_t* order = matrix.order + block * quads;
        const std::int8_t* weights = matrix.weights + block * matrix.inputs * kBlock;
        const __m256i ones = _mm256_set1_epi16(1);
        __m256i total[Rows][2];
        for (std::size_t r = 0; r < Rows; ++r) total[r][0] = total[r][1] = _mm256_setzero_si256();
        std::size_t quad = 0;
        for (; quad < grouped; quad += kGroup) {
            __m256i sum[Rows][2];
#pragma GCC unroll 4
            for (std::size_t k = 0; k < kGroup; ++k, weights += kBlock * kQuad) {
                const std::uint8_t* from = x + order[quad + k];
                const __m256i low = load(weights);
                const __m256i high = load(weights + 32);
#pragma GCC unroll 4
                for (std::size_t r = 0; r < Rows; ++r) {
                    const __m256i bytes = quad_of(from + r * stride);
                    const __m256i first = _mm256_maddubs_epi16(bytes, low);
                    const __m256i second = _mm256_maddubs_epi16(bytes, high);
                    sum[r][0] = k == 0 ? first : _mm256_add_epi16(sum[r][0], first);
                    sum[r][1] = k == 0 ? second : _mm256_add_epi16(sum[r][1], second);
                }
            }
#pragma GCC unroll 4
            for (std::size_t r = 0; r < Rows; ++r)
                for (std::size_t half = 0; half < 2; ++half)
                    total[r][half] =
                        _mm256_add_epi32(total[r][half], _mm256_madd_epi16(sum[r][half], ones));
        }
        for (; quad < quads; ++quad, weights += kBlock * kQuad) {
            const __m256i low = load(weights);
            const __m256i high = load(weights + 32);
            for (std::size_t r = 0; r < Rows; ++r) {
                const __m256i bytes = quad_of(x + order[quad] + r * stride);
                const __m256i first = _mm256_maddubs_epi16(bytes, low);
                const __m256i second = _mm256_maddubs_epi16(bytes, high);
                total[r][0] = _mm256_add_epi32(total[r][0], _mm256_madd_epi16(first, ones));
                total[r][1] = _mm256_add_epi32(total[r][1], _mm256_madd_epi16(second, ones));
            }
        }
        for (std::size_t r = 0; r < Rows; ++r) {
            _mm256_store_si256(reinterpret_cast<__m256i*>(sums[r]), total[r][0]);
            _mm256_store_si256(reinterpret_cast<__m256i*>(sums[r] + 8), total[r][1]);
        }
    }

    static std::size_t multiply(const Matrix& matrix, std::size_t block, const std::uint8_t* x,
                                std::size_t stride, std::size_t rows,
                                std::int32_t (*sums)[kBlock]) {
        if (rows >= 4) return tile<4>(matrix, block, x, stride, sums), 4;
        if (rows == 3) return tile<3>(matrix, block, x, stride, sums), 3;
        if (rows == 2) return tile<2>(matrix, block, x, stride, sums), 2;
        return tile<1>(matrix, block, x, stride, sums), 1;
    }
};

}  // namespace

void run_avx2(const Work& work) { run<Avx2Dot>(work); }

}  // namespace lmfs::engine
