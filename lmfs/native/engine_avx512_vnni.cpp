// The engine for AVX-512 VNNI, in registers of 512 bits: one instruction multiplies unsigned by signed
// bytes and adds four products in 32 bits, and does not saturate.

#include <immintrin.h>

#include "engine_isa.hpp"
#include "engine_kernel.hpp"

namespace lmfs::engine {
namespace {

struct Avx512Dot {
    static constexpr std::size_t kVectors = kBlock / 16;
    // Their sums fill half of the registers; weights are loaded once for all of them.
    static constexpr std::size_t kRowsTogether = 8;
    static constexpr std::size_t kDenseFrom = 4;

    static __m512i load(const void* data) { return _mm512_loadu_si512(data); }

    // total += the products of four bytes with four weights, in every lane. The intrinsic would do, but
    // GCC 12 copies every sum to another register and back.
    static void add_products(__m512i& total, __m512i bytes, __m512i weights) {
        asm("vpdpbusd %2, %1, %0" : "+v"(total) : "v"(bytes), "v"(weights));
    }

    // Four activations, in every lane.
    static __m512i quad_at(const std::uint8_t* x) {
        std::int32_t quad;
        __builtin_memcpy(&quad, x, sizeof quad);
        return _mm512_set1_epi32(quad);
    }

    template <std::size_t Rows>
    static void multiply(const Matrix& matrix, std::size_t block, const std::uint8_t* x,
                         std::size_t stride, std::int32_t (*values)[kBlock]) {
        // So many sums for each output that none has to wait for itself.
        constexpr std::size_t kSums = Rows >= 4 ? 1 : 4 / Rows;
        const std::size_t quads = matrix.inputs / kQuad;
        static_assert(kBlock / kQuad % kSums == 0);  // inputs are padded to kBlock
        const std::int8_t* weights = matrix.weights + block * matrix.inputs * kBlock;
        __m512i total[kSums][Rows][kVectors];
#pragma GCC unroll 4
        for (auto& sums : total)
#pragma GCC unroll 8
            for (auto& sum : sums)
                for (__m512i& vector : sum) vector = _mm512_setzero_si512();
        for (std::size_t quad = 0; quad < quads; quad += kSums)
#pragma GCC unroll 4
            for (std::size_t k = 0; k < kSums; ++k, weights += kQuad * kBlock) {
                const std::uint8_t* at = x + (quad + k) * kQuad;
                const __m512i low = load(weights), high = load(weights + 64);
                if constexpr (Rows >= 4) {  // where the products, not the weights, take the time
                    _mm_prefetch(weights + kAhead, _MM_HINT_T0);
                    _mm_prefetch(weights + kAhead + 64, _MM_HINT_T0);
                }
#pragma GCC unroll 8
                for (std::size_t row = 0; row < Rows; ++row) {
                    const __m512i bytes = quad_at(at + row * stride);
                    add_products(total[k][row][0], bytes, low);
                    add_products(total[k][row][1], bytes, high);
                }
            }
#pragma GCC unroll 8
        for (std::size_t row = 0; row < Rows; ++row) {
#pragma GCC unroll 4
            for (std::size_t k = 1; k < kSums; ++k)
                for (std::size_t v = 0; v < kVectors; ++v)
                    total[0][row][v] = _mm512_add_epi32(total[0][row][v], total[k][row][v]);
            store(matrix, block, total[0][row], values[row]);
        }
    }

    static void multiply_fired(const Matrix& matrix, std::size_t block, const std::uint8_t* x,
                               const std::uint16_t* fired, std::size_t count,
                               std::int32_t* values) {
        const std::int8_t* weights = matrix.weights + block * matrix.inputs * kBlock;
        __m512i total[2][kVectors];
        for (auto& sums : total)
            for (__m512i& sum : sums) sum = _mm512_setzero_si512();
        std::size_t k = 0;
        for (; k + 2 <= count; k += 2)
#pragma GCC unroll 2
            for (std::size_t i = 0; i < 2; ++i) add(weights, x, fired[k + i], total[i]);
        if (k < count) add(weights, x, fired[k], total[0]);
        for (std::size_t v = 0; v < kVectors; ++v)
            total[0][v] = _mm512_add_epi32(total[0][v], total[1][v]);
        store(matrix, block, total[0], values);
    }

private:
    static constexpr std::size_t kAhead = 1024;  // bytes of weights

    static void add(const std::int8_t* weights, const std::uint8_t* x, std::size_t at,
                    __m512i* total) {
        const __m512i bytes = quad_at(x + at);
        for (std::size_t v = 0; v < kVectors; ++v)
            add_products(total[v], bytes, load(weights + at * kBlock + v * 64));
    }

    // The results of a block from its sums.
    static void store(const Matrix& matrix, std::size_t block, const __m512i* total,
                      std::int32_t* values) {
        for (std::size_t v = 0; v < kVectors; ++v) {
            const std::size_t output = block * kBlock + v * 16;
            const __m512i shifted = _mm512_sllv_epi32(total[v], load(matrix.left + output));
            const __m512i sum = _mm512_add_epi32(shifted, load(matrix.bias + output));
            _mm512_storeu_si512(values + v * 16,
                                _mm512_srav_epi32(sum, load(matrix.right + output)));
        }
    }
};

}  // namespace

void run_avx512_vnni(const Work& work) { run<Avx512Dot>(work); }

}  // namespace lmfs::engine
