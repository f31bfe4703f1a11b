// A model of the architecture "gated-recurrence-1", packed for one instruction set.
//
// Invariant: a model that was made is exact. The constructor refuses one for which the graphs of
// tools/graphs.py could round in float32, or the kernels here could overflow:
//
// - the stream is within 2^15, so that a sum of its absolute values is below 2^24 (width <= 512);
// - x * (2^23 div sum|x|) is at most 2^23, since |x| <= sum|x|;
// - coefficients of the token shift are n/64 with |n| <= 127;
// - h + u^2 (c - h) lies between h and c, and both are clipped to 2^13;
// - products: see PackedMatrix; with the stream added they stay below 2^24.

#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine_pack.hpp"
#include "engine_views.hpp"

namespace lmfs::engine {

struct Sizes {
    std::size_t vocab;
    std::size_t width;
    std::size_t layers;
    std::size_t hidden;
    std::size_t hash_rows;
};

// One initializer of the package; exactly one of the two pointers is set.
struct Tensor {
    const std::int8_t* bytes;
    const float* reals;
    std::vector<std::size_t> shape;
};

using Tensors = std::map<std::string, Tensor>;

class PackedModel {
public:
    // raises: std::invalid_argument naming the tensor that is missing, of another shape or not
    // exact
    PackedModel(const Sizes& sizes, const Tensors& tensors, Packing packing)
        : sizes_(sizes), tensors_(&tensors), packing_(packing) {
        check_sizes();
        embed_ = table("embed", sizes.vocab);
        embed_pair_ = table("embed_pair", sizes.hash_rows);
        const Operand activations{std::vector<std::int32_t>(sizes.width, 127), true};
        const Operand squares{std::vector<std::int32_t>(sizes.hidden, 127), false};
        for (std::size_t k = 0; k < sizes.layers; ++k) {
            const std::string name = "layer" + std::to_string(k);
            Layer layer{};
            Operand mixed = activations;
            layer.shift_time = shift(name + ".shift_time", mixed);
            layer.in = matrix(name + ".in", sizes.width, 3 * sizes.width, mixed);
            layer.out = added_matrix(name + ".out", sizes.width, activations);
            mixed = activations;
            layer.shift_channel = shift(name + ".shift_channel", mixed);
            layer.up = matrix(name + ".up", sizes.width, sizes.hidden, mixed);
            layer.down = added_matrix(name + ".down", sizes.hidden, squares);
            layers_.push_back(layer);
        }
        head_ = matrix("head", sizes.width, sizes.vocab, activations);
        if (used_ != tensors.size())
            throw std::invalid_argument("weights: expected " + std::to_string(used_) +
                                        " tensors, got " + std::to_string(tensors.size()));
        tensors_ = nullptr;
    }

    PackedModel(const PackedModel&) = delete;
    PackedModel& operator=(const PackedModel&) = delete;

    const Sizes& sizes() const { return sizes_; }

    Model view() const {
        return {sizes_.vocab,  sizes_.width,       sizes_.layers,  sizes_.hash_rows, norm_shift(),
                embed_.data(), embed_pair_.data(), layers_.data(), head_};
    }

    std::size_t padded_hidden() const { return layers_[0].down.inputs; }

    // Multiplications of one token.
    std::size_t products() const {
        const std::size_t layer = 4 * sizes_.width + 2 * sizes_.hidden;
        return sizes_.width * (sizes_.layers * layer + sizes_.vocab);
    }

private:
    static constexpr std::int64_t kExact = std::int64_t{1} << 24;

    void check_sizes() const {
        const Sizes& s = sizes_;
        if (!std::has_single_bit(s.width) || s.width < kBlock || s.width > 512)
            throw std::invalid_argument("width: expected a power of two from 32 to 512, got " +
                                        std::to_string(s.width));
        const auto within = [](const char* name, std::size_t value, std::size_t most) {
            if (value < 1 || value > most)
                throw std::invalid_argument(std::string(name) + ": expected 1 to " +
                                            std::to_string(most) + ", got " +
                                            std::to_string(value));
        };
        within("vocab", s.vocab, 65'536);
        within("layers", s.layers, 1'024);
        within("hidden", s.hidden, 32'768);
        within("hash_rows", s.hash_rows, std::size_t{1} << 24);
    }

    std::int32_t norm_shift() const { return 23 - 4 - (std::bit_width(sizes_.width) - 1); }

    const Tensor& find(const std::string& name, const std::vector<std::size_t>& shape) {
        const auto found = tensors_->find(name);
        if (found == tensors_->end()) throw std::invalid_argument(name + ": missing");
        if (found->second.shape != shape) throw std::invalid_argument(name + ": unexpected shape");
        ++used_;
        return found->second;
    }

    const std::int8_t* bytes(const std::string& name, const std::vector<std::size_t>& shape) {
        const std::int8_t* data = find(name, shape).bytes;
        if (data == nullptr) throw std::invalid_argument(name + ": expected int8");
        return data;
    }

    const float* reals(const std::string& name, std::size_t size) {
        const float* data = find(name, {size}).reals;
        if (data == nullptr) throw std::invalid_argument(name + ": expected float32");
        return data;
    }

    std::vector<std::int8_t> table(const std::string& name, std::size_t rows) {
        const std::int8_t* data = bytes(name, {rows, sizes_.width});
        return {data, data + rows * sizes_.width};
    }

    // The coefficients; `mixed` becomes what the shift makes of it.
    Shift shift(const std::string& name, Operand& mixed) {
        const std::int16_t* now = coefficients(name + ".now");
        const std::int16_t* past = coefficients(name + ".past");
        for (std::size_t c = 0; c < sizes_.width; ++c) {
            const std::int32_t reach = (std::abs(now[c]) + std::abs(past[c])) * mixed.largest[c];
            mixed.largest[c] = std::min(mixed.largest[c], (reach + 32) >> 6);
        }
        return {now, past};
    }

    const std::int16_t* coefficients(const std::string& name) {
        const float* values = reals(name, sizes_.width);
        std::vector<std::int16_t>& kept = shifts_.emplace_back();
        for (std::size_t c = 0; c < sizes_.width; ++c) {
            const float scaled = values[c] * 64.0F;
            if (!(std::abs(scaled) <= 127.0F) || scaled != std::floor(scaled))
                throw std::invalid_argument(name + ": expected multiples of 1/64 up to 127/64");
            kept.push_back(static_cast<std::int16_t>(scaled));
        }
        return kept.data();
    }

    Matrix matrix(const std::string& name, std::size_t inputs, std::size_t outputs,
                  const Operand& operand) {
        const Weights source{name,
                             inputs,
                             outputs,
                             bytes(name + ".weight", {inputs, outputs}),
                             reals(name + ".scale", outputs),
                             reals(name + ".bias", outputs)};
        return matrices_.emplace_back(source, operand, packing_).view();
    }

    // One whose result is added to the stream.
    Matrix added_matrix(const std::string& name, std::size_t inputs, const Operand& operand) {
        const Matrix view = matrix(name, inputs, sizes_.width, operand);
        if (matrices_.back().reach() + 32'767 > kExact)
            throw std::invalid_argument(name + ": a sum of more than 24 bits");
        return view;
    }

    Sizes sizes_;
    const Tensors* tensors_;  // while packing
    Packing packing_;
    std::size_t used_ = 0;
    std::vector<std::int8_t> embed_;
    std::vector<std::int8_t> embed_pair_;
    std::deque<std::vector<std::int16_t>> shifts_;  // deques: views keep their addresses
    std::deque<PackedMatrix> matrices_;
    std::vector<Layer> layers_;
    Matrix head_{};
};

}  // namespace lmfs::engine
