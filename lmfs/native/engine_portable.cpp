// The engine in portable C++: the reference for the other instruction sets, and what runs where
// there is none of them. Written with the vector types that GCC and Clang have for every target;
// products are summed in 16 bits as far as the packer has shown that they fit (engine_pack.hpp),
// because vector units do twice as many of those at a time.

#include "engine_isa.hpp"
#include "engine_kernel.hpp"

namespace lmfs::engine {
namespace {

struct PortableDot {
    static constexpr std::size_t kTile = 2;

    using Words = std::int16_t __attribute__((vector_size(16)));
    using Longs = std::int32_t __attribute__((vector_size(16)));

    // Eight weights of one input.
    static Words load(const std::int16_t* weights) {
        Words words;
        __builtin_memcpy(&words, weights, sizeof words);
        return words;
    }

    // Adds words 0, 2, 4, 6 and words 1, 3, 5, 7: shifts are vector instructions everywhere.
    static void add(Longs* total, Words sum) {
        Longs pairs;
        __builtin_memcpy(&pairs, &sum, sizeof pairs);
        total[0] += pairs << 16 >> 16;
        total[1] += pairs >> 16;
    }

    // total += the products of so many quads, whose sums of each half fit 16 bits.
    template <std::size_t Rows, std::size_t Quads>
    static void add_quads(const std::uint8_t* x, std::size_t stride, const std::uint16_t* order,
                          const std::int16_t* weights, Longs (*total)[4]) {
        for (std::size_t half = 0; half < 2; ++half) {
            Words sum[Rows][2] = {};
            for (std::size_t quad = 0; quad < Quads; ++quad)
                for (std::size_t i = 2 * half; i < 2 * half + 2; ++i) {
                    const std::int16_t* from = weights + (quad * kQuad + i) * kBlock;
                    const Words low = load(from);
                    const Words high = load(from + 8);
                    for (std::size_t r = 0; r < Rows; ++r) {
                        const std::int16_t value = x[r * stride + order[quad] + i];
                        sum[r][0] += low * value;
                        sum[r][1] += high * value;
                    }
                }
            for (std::size_t r = 0; r < Rows; ++r) {
                add(total[r], sum[r][0]);
                add(total[r] + 2, sum[r][1]);
            }
        }
    }

    template <std::size_t Rows>
    static std::size_t tile(const Matrix& matrix, std::size_t block, const std::uint8_t* x,
                            std::size_t stride, std::int32_t (*values)[kBlock]) {
        const std::size_t quads = matrix.inputs / kQuad;
        const std::uint16_t* order = matrix.order + block * quads;
        const std::int16_t* weights = matrix.planes + block * matrix.inputs * kBlock;
        Longs total[Rows][4] = {};
        std::size_t quad = 0;
        for (; quad < matrix.grouped[block]; quad += kGroup, weights += kGroup * kQuad * kBlock)
            add_quads<Rows, kGroup>(x, stride, order + quad, weights, total);
        for (; quad < quads; ++quad, weights += kQuad * kBlock)
            add_quads<Rows, 1>(x, stride, order + quad, weights, total);
        for (std::size_t r = 0; r < Rows; ++r)
            for (std::size_t o = 0; o < kBlock; ++o) {
                const std::size_t output = block * kBlock + o;
                const std::int32_t sum = total[r][o / 8 * 2 + o % 2][o % 8 / 2];
                values[r][o] =
                    ((sum << matrix.left[output]) + matrix.bias[output]) >> matrix.right[output];
            }
        return Rows;
    }

    static std::size_t multiply(const Matrix& matrix, std::size_t block, const std::uint8_t* x,
                                std::size_t stride, std::size_t rows,
                                std::int32_t (*values)[kBlock]) {
        return rows >= 2 ? tile<2>(matrix, block, x, stride, values)
                         : tile<1>(matrix, block, x, stride, values);
    }
};

}  // namespace

void run_portable(const Work& work) { run<PortableDot>(work); }

}  // namespace lmfs::engine
