// Packing one matrix for the kernels, and the proof that its products are exact.
//
// Quads of inputs are put in groups of kGroup, for each block of outputs by itself, so that the
// products of a group with one output fit 16 bits whatever the activations are: only then may a
// kernel add them there. What a group cannot take stands at the end, to be added in 32 bits.
// Where any two quads fit, as those of squares do, they are left in their order, so that kernels can
// leave out the ones that are zeros; and all are where the processor sums in 32 bits anyway.

#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine_views.hpp"

namespace lmfs::engine {

// Vectors that begin at a cache line: a load that spans two lines costs as much as two.
template <typename T>
struct CacheAligned {
    using value_type = T;

    CacheAligned() = default;
    template <typename U>
    CacheAligned(const CacheAligned<U>&) {}

    T* allocate(std::size_t count) {
        return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64}));
    }
    void deallocate(T* data, std::size_t) { ::operator delete(data, std::align_val_t{64}); }

    bool operator==(const CacheAligned&) const { return true; }
};

template <typename T>
using AlignedVector = std::vector<T, CacheAligned<T>>;

// What an input of a product can be, and what is added to make it an unsigned byte.
struct Operand {
    std::vector<std::int32_t> largest;  // of each input's absolute value
    bool is_signed;

    std::int32_t offset() const { return is_signed ? 128 : 0; }
    bool is_sparse() const { return !is_signed; }  // zero most of the time
    std::int32_t low(std::size_t input) const { return is_signed ? -largest[input] : 0; }
};

// As the package has it.
struct Weights {
    std::string name;
    std::size_t inputs;
    std::size_t outputs;
    const std::int8_t* weight;  // (inputs, outputs), in [-64, 63]
    const float* scale;         // powers of two
    const float* bias;          // one half, for rounding, included
};

class PackedMatrix {
public:
    // raises: std::invalid_argument where float32 could round what the integers here do not:
    // the bounds are those of lmfs/models/certificate.py
    PackedMatrix(const Weights& source, const Operand& operand, Packing packing)
        : inputs_(round_up(source.inputs, kBlock)), outputs_(round_up(source.outputs, kBlock)) {
        if (inputs_ > 0xffff) throw std::invalid_argument(source.name + ": too many inputs");
        requantise(source, operand);
        pack(source, operand, packing);
    }

    Matrix view() const {
        return {inputs_,         outputs_,     weights_.data(), planes_.data(), order_.data(),
                grouped_.data(), bias_.data(), left_.data(),    right_.data()};
    }

    // The largest absolute value of a result, before any clip.
    std::int64_t reach() const { return reach_; }

private:
    static constexpr std::int64_t kExact = std::int64_t{1} << 24;  // of float32
    static constexpr int kMaxShift = 24;
    static constexpr std::int32_t kMostOfPair = 4 * 64;  // two weights of each of two quads
    static constexpr std::size_t kBounds = 4 * kBlock;  // positive and negative, of both halves
    using Bounds = std::array<std::int32_t, kBounds>;

    static std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

    void requantise(const Weights& source, const Operand& operand) {
        bias_.assign(outputs_, 0);
        left_.assign(outputs_, 0);
        right_.assign(outputs_, 0);
        // Columns are summed row by row, as they lie in memory; inputs x 64 x 127 fits 32 bits.
        std::vector<std::int32_t> lows(source.outputs), highs(source.outputs),
            reaches(source.outputs), sums(source.outputs);
        std::vector<std::int8_t> least_w(source.outputs), most_w(source.outputs);
        for (std::size_t i = 0; i < source.inputs; ++i) {
            const std::int8_t* row = source.weight + i * source.outputs;
            const std::int32_t least = operand.low(i), most = operand.largest[i];
            for (std::size_t o = 0; o < source.outputs; ++o) {
                const std::int32_t w = row[o];
                lows[o] += std::min(w * least, w * most);
                highs[o] += std::max(w * least, w * most);
                reaches[o] += std::abs(w) * most;
                sums[o] += w;
            }
            for (std::size_t o = 0; o < source.outputs; ++o) {
                least_w[o] = std::min(least_w[o], row[o]);
                most_w[o] = std::max(most_w[o], row[o]);
            }
        }
        for (std::size_t o = 0; o < source.outputs; ++o)
            if (least_w[o] < -64 || most_w[o] > 63) fail(source, o, "a weight outside [-64, 63]");
        for (std::size_t o = 0; o < source.outputs; ++o) {
            const std::int64_t low = lows[o], high = highs[o], reach = reaches[o], sum = sums[o];
            int exponent = 0;
            if (std::frexp(source.scale[o], &exponent) != 0.5F || std::abs(--exponent) > kMaxShift)
                fail(source, o, "a scale that is not a power of two from 2^-24 to 2^24");
            const double bias = source.bias[o];
            const double scale = std::ldexp(1.0, exponent);
            const int grid = std::max(-exponent, grid_of(source, o));
            const double most = std::max(std::abs(static_cast<double>(low) * scale + bias),
                                         std::abs(static_cast<double>(high) * scale + bias));
            if (reach > kExact || std::ldexp(most, grid) > static_cast<double>(kExact))
                fail(source, o, "a sum of more than 24 bits");
            left_[o] = std::max(exponent, 0);
            right_[o] = std::max(-exponent, 0);
            bias_[o] = static_cast<std::int32_t>(std::floor(std::ldexp(bias, right_[o])) -
                                                 std::ldexp(operand.offset() * sum, left_[o]));
            reach_ = std::max(reach_, static_cast<std::int64_t>(std::ceil(most)));
        }
    }

    // The least g so that bias * 2^g is an integer.
    static int grid_of(const Weights& source, std::size_t output) {
        const double bias = source.bias[output];
        for (int grid = -kMaxShift; grid <= kMaxShift; ++grid) {
            const double scaled = std::ldexp(bias, grid);
            if (scaled == std::floor(scaled)) return grid;
        }
        fail(source, output, "a bias that is not on a grid");
    }

    [[noreturn]] static void fail(const Weights& source, std::size_t output, const char* what) {
        throw std::invalid_argument(source.name + ": output " + std::to_string(output) + ": " +
                                    what);
    }

    void pack(const Weights& source, const Operand& operand, Packing packing) {
        const std::size_t quads = inputs_ / kQuad;
        std::int32_t widest = 0;
        for (std::int32_t value : operand.largest) widest = std::max(widest, value);
        const std::int32_t limit = 32767 / (widest + operand.offset());
        if (packing == Packing::planes)
            planes_.resize(inputs_ * outputs_);
        else
            weights_.resize(inputs_ * outputs_);
        order_.reserve(quads * outputs_ / kBlock);
        std::vector<std::int8_t> rows(inputs_ * kBlock);
        for (std::size_t block = 0; block < outputs_ / kBlock; ++block) {
            // The block's weights, [input][kBlock], zeros where the source has none.
            std::fill(rows.begin(), rows.end(), std::int8_t{0});
            const std::size_t first = block * kBlock;
            const std::size_t count = std::min(kBlock, source.outputs - first);
            for (std::size_t i = 0; i < source.inputs; ++i)
                std::copy_n(source.weight + i * source.outputs + first, count,
                            rows.data() + i * kBlock);
            const std::vector<std::size_t> order =
                packing == Packing::plain ? in_their_order(quads)
                : operand.is_sparse()     ? in_safe_order(quads, source, limit)
                                          : group(bounds_of(rows), limit);
            std::size_t to = block * inputs_ * kBlock;
            for (std::size_t quad : order) {
                order_.push_back(static_cast<std::uint16_t>(quad * kQuad));
                const std::int8_t* from = rows.data() + quad * kQuad * kBlock;
                if (packing == Packing::planes)
                    std::copy_n(from, kQuad * kBlock, planes_.data() + to);
                else
                    interleave(from, weights_.data() + to);
                to += kBlock * kQuad;
            }
        }
    }

    // Four rows to four bytes an output.
    static void interleave(const std::int8_t* rows, std::int8_t* to) {
        static_assert(kQuad == 4);
        for (std::size_t o = 0; o < kBlock; ++o)
            for (std::size_t i = 0; i < kQuad; ++i) to[o * kQuad + i] = rows[i * kBlock + o];
    }

    // Of each quad of a block's weights.
    static std::vector<Bounds> bounds_of(const std::vector<std::int8_t>& rows) {
        std::vector<Bounds> bounds(rows.size() / kBlock / kQuad);
        for (std::size_t i = 0; i < rows.size() / kBlock; ++i) {
            std::int32_t* bound = bounds[i / kQuad].data() + i % kQuad / 2 * 2 * kBlock;
            for (std::size_t o = 0; o < kBlock; ++o) {
                const std::int32_t w = rows[i * kBlock + o];
                bound[o] += std::max(w, 0);
                bound[kBlock + o] -= std::min(w, 0);
            }
        }
        return bounds;
    }

    std::vector<std::size_t> in_their_order(std::size_t quads) {
        grouped_.push_back(0);
        std::vector<std::size_t> order(quads);
        for (std::size_t quad = 0; quad < quads; ++quad) order[quad] = quad;
        return order;
    }

    // raises: std::invalid_argument if the products of two quads, at the widest weights, do not fit
    std::vector<std::size_t> in_safe_order(std::size_t quads, const Weights& source,
                                           std::int32_t limit) {
        if (limit < kMostOfPair) fail(source, 0, "squares of more than 7 bits");
        return in_their_order(quads);
    }

    // The order of the quads: first those in groups within the limit, which grouped_ counts.
    // Greedy: the one with the largest bound, then the next ones that still fit.
    std::vector<std::size_t> group(const std::vector<Bounds>& bounds, std::int32_t limit) {
        std::vector<std::int32_t> largest;
        for (const Bounds& bound : bounds) {
            std::int32_t most = 0;
            for (std::size_t k = 0; k < kBounds; ++k) most = std::max(most, bound[k]);
            largest.push_back(most);
        }
        std::vector<std::size_t> left(bounds.size()), order, alone;
        for (std::size_t quad = 0; quad < left.size(); ++quad) left[quad] = quad;
        std::stable_sort(left.begin(), left.end(),
                         [&](std::size_t a, std::size_t b) { return largest[a] > largest[b]; });
        while (!left.empty()) {
            std::array<std::size_t, kGroup> places{0};
            std::size_t members = 1;
            Bounds sum = bounds[left[0]];
            for (std::size_t place = 1; place < left.size() && members < kGroup; ++place)
                if (fits(sum, bounds[left[place]], limit)) {
                    for (std::size_t k = 0; k < kBounds; ++k) sum[k] += bounds[left[place]][k];
                    places[members++] = place;
                }
            if (members < kGroup) members = 1;
            for (std::size_t k = 0; k < members; ++k)
                (members == kGroup ? order : alone).push_back(left[places[k]]);
            for (std::size_t k = members; k-- > 0;)
                left.erase(left.begin() + static_cast<std::ptrdiff_t>(places[k]));
        }
        grouped_.push_back(static_cast<std::uint16_t>(order.size()));
        order.insert(order.end(), alone.begin(), alone.end());
        return order;
    }

    static bool fits(const Bounds& sum, const Bounds& more, std::int32_t limit) {
        std::int32_t most = 0;
        for (std::size_t k = 0; k < kBounds; ++k) most = std::max(most, sum[k] + more[k]);
        return most <= limit;
    }

    std::size_t inputs_;
    std::size_t outputs_;
    std::int64_t reach_ = 0;
    AlignedVector<std::int8_t> weights_;  // one of the two is empty
    AlignedVector<std::int16_t> planes_;
    std::vector<std::uint16_t> order_;
    std::vector<std::uint16_t> grouped_;
    AlignedVector<std::int32_t> bias_;
    AlignedVector<std::int32_t> left_;
    AlignedVector<std::int32_t> right_;
};

}  // namespace lmfs::engine
