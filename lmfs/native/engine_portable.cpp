// The engine in portable C++: the reference for the other instruction sets, and what runs where
// there is none of them. Sums of two products, and of the products of a group, fit 16 bits:
// vector units do twice as many of those at a time.

#include "engine_isa.hpp"
#include "engine_kernel.hpp"

namespace lmfs::engine {
namespace {

struct PortableDot {
    static constexpr std::size_t kTile = 1;

    // sum += x[k] * weights[k] for k in one half of a quad.
    static void add_pair(const std::uint8_t* x, const std::int8_t* weights, std::int16_t* sum) {
        const std::int16_t first = x[0];
        const std::int16_t second = x[1];
        for (std::size_t o = 0; o < kBlock; ++o)
            sum[o] = static_cast<std::int16_t>(sum[o] + first * weights[o] +
                                               second * weights[kBlock + o]);
    }

    static void add_quads(const std::uint8_t* x, const std::uint16_t* order, std::size_t quads,
                          const std::int8_t* weights, std::int32_t* sums) {
        alignas(64) std::int16_t low[kBlock] = {};
        alignas(64) std::int16_t high[kBlock] = {};
        for (std::size_t quad = 0; quad < quads; ++quad) {
            const std::int8_t* w = weights + quad * kBlock * kQuad;
            add_pair(x + order[quad], w, low);
            add_pair(x + order[quad] + 2, w + 2 * kBlock, high);
        }
        for (std::size_t o = 0; o < kBlock; ++o) sums[o] += low[o] + high[o];
    }

    static std::size_t multiply(const Matrix& matrix, std::size_t block, const std::uint8_t* x,
                                std::size_t, std::size_t, std::int32_t (*sums)[kBlock]) {
        const std::size_t quads = matrix.inputs / kQuad;
        const std::uint16_t* order = matrix.order + block * quads;
        const std::int8_t* weights = matrix.weights + block * matrix.inputs * kBlock;
        for (std::size_t o = 0; o < kBlock; ++o) sums[0][o] = 0;
        for (std::size_t quad = 0; quad < quads;) {
            const std::size_t count = quad < matrix.grouped[block] ? kGroup : 1;
            add_quads(x, order + quad, count, weights + quad * kBlock * kQuad, sums[0]);
            quad += count;
        }
        return 1;
    }
};

}  // namespace

void run_portable(const Work& work) { run<PortableDot>(work); }

}  // namespace lmfs::engine
