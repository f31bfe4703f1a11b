// The engine in portable C++: the reference for the other instruction sets, and what runs where
// there is none of them. Written with the vector types that GCC and Clang have for every target;
// products are summed in 16 bits as far as the packer has shown that they fit (engine_pack.hpp),
// because vector units do twice as many of those at a time.

#include "engine_isa.hpp"
#include "engine_kernel.hpp"

namespace lmfs::engine {
namespace {

struct PortableDot {
    static constexpr std::size_t kVectors = kBlock / 8;

    using Words = std::int16_t __attribute__((vector_size(16)));
    using Longs = std::int32_t __attribute__((vector_size(16)));

    // total += the products of so many quads, whose sums of each half fit 16 bits.
    template <std::size_t Quads>
    static void add_quads(const std::uint8_t* x, const std::uint16_t* order,
                          const std::int16_t* weights, Longs (*total)[2]) {
        for (std::size_t half = 0; half < 2; ++half) {
            Words sum[kVectors] = {};
            for (std::size_t quad = 0; quad < Quads; ++quad)
                for (std::size_t i = 2 * half; i < 2 * half + 2; ++i) {
                    const std::int16_t value = x[order[quad] + i];
                    for (std::size_t v = 0; v < kVectors; ++v) {
                        Words words;
                        __builtin_memcpy(&words, weights + (quad * kQuad + i) * kBlock + v * 8,
                                         sizeof words);
                        sum[v] += words * value;
                    }
                }
            for (std::size_t v = 0; v < kVectors; ++v) {
                Longs pairs;
                __builtin_memcpy(&pairs, &sum[v], sizeof pairs);
                total[v][0] += pairs << 16 >> 16;  // one word of each pair, then the other
                total[v][1] += pairs >> 16;
            }
        }
    }

    static constexpr std::size_t kRowsTogether = 1;
    static constexpr std::size_t kDenseFrom = kRows + 1;

    template <std::size_t Rows>
    static void multiply(const Matrix& matrix, std::size_t block, const std::uint8_t* x,
                         std::size_t, std::int32_t (*values)[kBlock]) {
        const std::size_t quads = matrix.inputs / kQuad;
        const std::uint16_t* order = matrix.order + block * quads;
        const std::int16_t* weights = matrix.planes + block * matrix.inputs * kBlock;
        Longs total[kVectors][2] = {};
        std::size_t quad = 0;
        for (; quad < matrix.grouped[block]; quad += kGroup, weights += kGroup * kQuad * kBlock)
            add_quads<kGroup>(x, order + quad, weights, total);
        for (; quad < quads; ++quad, weights += kQuad * kBlock)
            add_quads<1>(x, order + quad, weights, total);
        store(matrix, block, total, *values);
    }

    static void multiply_fired(const Matrix& matrix, std::size_t block, const std::uint8_t* x,
                               const std::uint16_t* fired, std::size_t count,
                               std::int32_t* values) {
        const std::int16_t* weights = matrix.planes + block * matrix.inputs * kBlock;
        Longs total[kVectors][2] = {};
        for (std::size_t k = 0; k < count; ++k)
            add_quads<1>(x, fired + k, weights + fired[k] * kBlock, total);
        store(matrix, block, total, values);
    }

    static void store(const Matrix& matrix, std::size_t block, const Longs (*total)[2],
                      std::int32_t* values) {
        for (std::size_t o = 0; o < kBlock; ++o) {
            const std::size_t output = block * kBlock + o;
            const std::int32_t sum = total[o / 8][o % 2][o % 8 / 2];
            values[o] =
                ((sum << matrix.left[output]) + matrix.bias[output]) >> matrix.right[output];
        }
    }
};

}  // namespace

void run_portable(const Work& work) { run<PortableDot>(work); }

}  // namespace lmfs::engine
