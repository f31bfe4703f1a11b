// The engine for AVX2. The instruction that multiplies unsigned by signed bytes adds two products
// in 16 bits, with saturation: weights in [-64, 63] keep that exact (2 * 255 * 64 < 2^15), and
// the packer finds groups of quads whose whole sum is bounded too (engine_pack.hpp).

#include "engine_avx.hpp"
#include "engine_isa.hpp"

namespace lmfs::engine {
namespace {

// One row at a time: its sums fill half of the registers, weights come from the cache as operands
// of the multiplication, and each loaded quad of activations serves kBlock outputs.
struct Avx2Dot : AvxRegisters {
    // total += the products of so many quads, whose sums fit 16 bits.
    template <std::size_t Quads>
    static void add_quads(const std::uint8_t* x, const std::uint16_t* order,
                          const std::int8_t* weights, __m256i* total) {
        __m256i sum[kVectors];
#pragma GCC unroll 8
        for (std::size_t quad = 0; quad < Quads; ++quad) {
            const __m256i bytes = quad_at(x + order[quad]);
#pragma GCC unroll 8
            for (std::size_t v = 0; v < kVectors; ++v) {
                const __m256i products = _mm256_maddubs_epi16(
                    bytes, load(weights + (quad * kVectors + v) * 32));
                sum[v] = quad == 0 ? products : _mm256_add_epi16(sum[v], products);
                keep_order(sum[v]);
            }
        }
#pragma GCC unroll 8
        for (std::size_t v = 0; v < kVectors; ++v)
            total[v] =
                _mm256_add_epi32(total[v], _mm256_madd_epi16(sum[v], _mm256_set1_epi16(1)));
    }

    // Keeps the compiler from adding in another order, for which the registers do not suffice.
    static void keep_order(__m256i& sum) { asm("" : "+x"(sum)); }

    static constexpr std::size_t kRowsTogether = 1;
    static constexpr std::size_t kDenseFrom = kRows + 1;

    template <std::size_t Rows>
    static void multiply(const Matrix& matrix, std::size_t block, const std::uint8_t* x,
                         std::size_t, std::int32_t (*values)[kBlock]) {
        const std::size_t quads = matrix.inputs / kQuad;
        const std::size_t grouped = matrix.grouped[block];
        const std::uint16_t* order = matrix.order + block * quads;
        const std::int8_t* weights = matrix.weights + block * matrix.inputs * kBlock;
        __m256i total[kVectors];
        for (__m256i& sum : total) sum = _mm256_setzero_si256();
        std::size_t quad = 0;
        for (; quad < grouped; quad += kGroup, weights += kGroup * kQuad * kBlock)
            add_quads<kGroup>(x, order + quad, weights, total);
        for (; quad < quads; ++quad, weights += kQuad * kBlock)
            add_quads<1>(x, order + quad, weights, total);
        store(matrix, block, total, *values);
    }

    static void multiply_fired(const Matrix& matrix, std::size_t block, const std::uint8_t* x,
                               const std::uint16_t* fired, std::size_t count,
                               std::int32_t* values) {
        const std::int8_t* weights = matrix.weights + block * matrix.inputs * kBlock;
        __m256i total[kVectors];
        for (__m256i& sum : total) sum = _mm256_setzero_si256();
        std::size_t k = 0;
        for (; k + 2 <= count; k += 2) {
            const __m256i one = quad_at(x + fired[k]), two = quad_at(x + fired[k + 1]);
            const std::int8_t* first = weights + fired[k] * kBlock;
            const std::int8_t* second = weights + fired[k + 1] * kBlock;
#pragma GCC unroll 8
            for (std::size_t v = 0; v < kVectors; ++v) {
                const __m256i sum =
                    _mm256_add_epi16(_mm256_maddubs_epi16(one, load(first + v * 32)),
                                     _mm256_maddubs_epi16(two, load(second + v * 32)));
                total[v] =
                    _mm256_add_epi32(total[v], _mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
            }
        }
        const std::uint16_t alone = 0;
        if (k < count) add_quads<1>(x + fired[k], &alone, weights + fired[k] * kBlock, total);
        store(matrix, block, total, values);
    }
};

}  // namespace

void run_avx2(const Work& work) { run<Avx2Dot>(work); }

}  // namespace lmfs::engine
