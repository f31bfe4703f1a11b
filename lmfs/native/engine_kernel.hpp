// The model's arithmetic, for one instruction set: included by engine_*.cpp, one each.
//
// A file that includes this one defines a Dot, which multiplies bytes; all else here is written
// so that compilers vectorise it. Everything has internal linkage, so that no function built for
// one instruction set can be linked in for another. The formulas are those of
// tools/exact_model.py and tools/graphs.py, in integers; engine_model.hpp proves that none of
// them can overflow. Shifts to the right round down, as C++20 defines them.

#pragma once

#include "engine_views.hpp"

namespace lmfs::engine {
namespace {

constexpr std::int32_t kActivationMax = 127;
constexpr std::int32_t kUnsigned = 128;  // added to activations: products take unsigned bytes
constexpr std::int32_t kResidualMax = 32767;
constexpr std::int32_t kNormNumerator = 1 << 23;
constexpr std::int32_t kGateMax = 32;
constexpr std::int32_t kStateMax = 8191;
constexpr std::int32_t kHiddenMax = 181;
constexpr std::int32_t kSquareMax = 127;
constexpr std::int32_t kLogitMax = 32767;
constexpr std::int64_t kHashPast = 4093;
constexpr std::int64_t kHashNow = 1031;

constexpr std::int32_t smaller(std::int32_t a, std::int32_t b) { return a < b ? a : b; }
constexpr std::int32_t larger(std::int32_t a, std::int32_t b) { return a > b ? a : b; }
constexpr std::int32_t clip(std::int32_t v, std::int32_t low, std::int32_t high) {
    return smaller(larger(v, low), high);
}

// Calls finish(block, row, values) with the kBlock results of each block of outputs and row.
template <class Dot, class Finish>
void product(const Matrix& matrix, const std::uint8_t* x, std::size_t stride, std::size_t rows,
             const Finish& finish) {
    alignas(64) std::int32_t sums[Dot::kTile][kBlock];
    alignas(64) std::int32_t values[kBlock];
    for (std::size_t block = 0; block < matrix.outputs / kBlock; ++block) {
        const std::int32_t* bias = matrix.bias + block * kBlock;
        const std::int32_t* left = matrix.left + block * kBlock;
        const std::int32_t* right = matrix.right + block * kBlock;
        for (std::size_t row = 0; row < rows;) {
            const std::size_t done =
                Dot::multiply(matrix, block, x + row * stride, stride, rows - row, sums);
            for (std::size_t k = 0; k < done; ++k, ++row) {
                for (std::size_t o = 0; o < kBlock; ++o)
                    values[o] = ((sums[k][o] << left[o]) + bias[o]) >> right[o];
                finish(block, row, values);
            }
        }
    }
}

void embed(const Model& model, std::int64_t before, std::int64_t token, std::int16_t* x) {
    const std::size_t width = model.width;
    const auto pair = static_cast<std::size_t>(before * kHashPast + token * kHashNow);
    const std::int8_t* one = model.embed + static_cast<std::size_t>(token) * width;
    const std::int8_t* two = model.embed_pair + pair % model.hash_rows * width;
    for (std::size_t c = 0; c < width; ++c)
        x[c] = static_cast<std::int16_t>((one[c] + two[c]) * 4);
}

// n = x over the mean of |x|, in 1/16.
void normalise(const Model& model, const std::int16_t* x, std::int8_t* n) {
    const std::size_t width = model.width;
    std::int32_t total = 0;
    for (std::size_t c = 0; c < width; ++c) total += x[c] < 0 ? -x[c] : x[c];
    const std::int32_t share = kNormNumerator / larger(total, static_cast<std::int32_t>(width));
    const std::int32_t shift = model.norm_shift;
    const std::int32_t half = 1 << (shift - 1);
    for (std::size_t c = 0; c < width; ++c)
        n[c] = static_cast<std::int8_t>(
            clip((x[c] * share + half) >> shift, -kActivationMax, kActivationMax));
}

void shift_tokens(const Shift& shift, const std::int8_t* n, const std::int8_t* before,
                  std::size_t width, std::uint8_t* operand) {
    for (std::size_t c = 0; c < width; ++c) {
        const std::int32_t mixed = (n[c] * shift.now[c] + before[c] * shift.past[c] + 32) >> 6;
        operand[c] =
            static_cast<std::uint8_t>(clip(mixed, -kActivationMax, kActivationMax) + kUnsigned);
    }
}

// Normalisation and token shift of every row; `part` is 0 for time mixing, 1 for the MLP.
void norm_and_shift(const Work& work, std::size_t layer, std::size_t part) {
    const Model& model = *work.model;
    const std::size_t width = model.width;
    const Shift& shift =
        part == 0 ? model.layer[layer].shift_time : model.layer[layer].shift_channel;
    for (std::size_t lane = 0; lane < work.lanes; ++lane) {
        std::int8_t* state = work.state.n + ((lane * model.layers + layer) * 2 + part) * width;
        const std::int8_t* before = state;
        for (std::size_t t = 0; t < work.time; ++t) {
            const std::size_t row = (lane * work.time + t) * width;
            std::int8_t* n = work.scratch.n + row;
            normalise(model, work.scratch.x + row, n);
            shift_tokens(shift, n, before, width, work.scratch.operand + row);
            before = n;
        }
        for (std::size_t c = 0; c < width; ++c) state[c] = before[c];
    }
}

// h += u^2 (c - h), then the product of h and its gate; u in 1/32, h and c in 2^-12, g in 1/32.
void recur(const std::int16_t* gates, std::size_t width, std::int16_t* h, std::uint8_t* operand) {
    const std::int16_t* candidate = gates + width;
    const std::int16_t* out_gate = gates + 2 * width;
    for (std::size_t c = 0; c < width; ++c) {
        const std::int32_t u = gates[c];
        const std::int32_t state = h[c] + ((u * u * (candidate[c] - h[c]) + 512) >> 10);
        const std::int32_t gated = (state * out_gate[c] + 1024) >> 11;
        h[c] = static_cast<std::int16_t>(state);
        operand[c] =
            static_cast<std::uint8_t>(clip(gated, -kActivationMax, kActivationMax) + kUnsigned);
    }
}

template <class Dot>
void mix_time(const Work& work, std::size_t number) {
    const Model& model = *work.model;
    const Layer& layer = model.layer[number];
    const Scratch& scratch = work.scratch;
    const std::size_t width = model.width;
    const std::size_t rows = work.lanes * work.time;
    norm_and_shift(work, number, 0);
    product<Dot>(layer.in, scratch.operand, width, rows,
                 [&](std::size_t block, std::size_t row, const std::int32_t* values) {
                     constexpr std::int32_t low[] = {0, -kStateMax, -kActivationMax};
                     constexpr std::int32_t high[] = {kGateMax, kStateMax, kActivationMax};
                     const std::size_t section = block * kBlock / width;
                     std::int16_t* to = scratch.gates + row * 3 * width + block * kBlock;
                     for (std::size_t o = 0; o < kBlock; ++o)
                         to[o] = static_cast<std::int16_t>(
                             clip(values[o], low[section], high[section]));
                 });
    for (std::size_t lane = 0; lane < work.lanes; ++lane) {
        std::int16_t* h = work.state.h + (lane * model.layers + number) * width;
        for (std::size_t t = 0; t < work.time; ++t) {
            const std::size_t row = lane * work.time + t;
            recur(scratch.gates + row * 3 * width, width, h, scratch.operand + row * width);
        }
    }
}

// x += matrix * operand, clipped.
template <class Dot>
void add_product(const Work& work, const Matrix& matrix, const std::uint8_t* operand) {
    const std::size_t width = work.model->width;
    product<Dot>(matrix, operand, matrix.inputs, work.lanes * work.time,
                 [&](std::size_t block, std::size_t row, const std::int32_t* values) {
                     std::int16_t* x = work.scratch.x + row * width + block * kBlock;
                     for (std::size_t o = 0; o < kBlock; ++o)
                         x[o] = static_cast<std::int16_t>(
                             clip(x[o] + values[o], -kResidualMax, kResidualMax));
                 });
}

template <class Dot>
void mix_channels(const Work& work, std::size_t number) {
    const Layer& layer = work.model->layer[number];
    const Scratch& scratch = work.scratch;
    const std::size_t stride = layer.down.inputs;
    norm_and_shift(work, number, 1);
    product<Dot>(layer.up, scratch.operand, work.model->width, work.lanes * work.time,
                 [&](std::size_t block, std::size_t row, const std::int32_t* values) {
                     std::uint8_t* to = scratch.squares + row * stride + block * kBlock;
                     for (std::size_t o = 0; o < kBlock; ++o) {
                         const std::int32_t z = clip(values[o], 0, kHiddenMax);
                         to[o] =
                             static_cast<std::uint8_t>(smaller((z * z + 128) >> 8, kSquareMax));
                     }
                 });
    add_product<Dot>(work, layer.down, scratch.squares);
}

template <class Dot>
void predict(const Work& work) {
    const Model& model = *work.model;
    const Scratch& scratch = work.scratch;
    const std::size_t rows = work.lanes * work.time;
    const std::size_t width = model.width;
    for (std::size_t row = 0; row < rows; ++row) {
        std::int8_t* n = scratch.n + row * width;
        std::uint8_t* operand = scratch.operand + row * width;
        normalise(model, scratch.x + row * width, n);
        for (std::size_t c = 0; c < width; ++c)
            operand[c] = static_cast<std::uint8_t>(n[c] + kUnsigned);
    }
    product<Dot>(model.head, scratch.operand, width, rows,
                 [&](std::size_t block, std::size_t row, const std::int32_t* values) {
                     std::int16_t* to = scratch.logits[row] + block * kBlock;
                     const std::size_t left = model.vocab - block * kBlock;
                     if (left >= kBlock) {
                         for (std::size_t o = 0; o < kBlock; ++o)
                             to[o] = static_cast<std::int16_t>(
                                 clip(values[o], -kLogitMax, kLogitMax));
                     } else {
                         for (std::size_t o = 0; o < left; ++o)
                             to[o] = static_cast<std::int16_t>(
                                 clip(values[o], -kLogitMax, kLogitMax));
                     }
                 });
}

template <class Dot>
void run(const Work& work) {
    const Model& model = *work.model;
    for (std::size_t lane = 0; lane < work.lanes; ++lane) {
        std::int64_t before = work.state.token[lane];
        for (std::size_t t = 0; t < work.time; ++t) {
            const std::size_t row = lane * work.time + t;
            const std::size_t at = lane * work.stride + t;
            embed(model, before, work.tokens[at], work.scratch.x + row * model.width);
            before = work.tokens[at];
            work.scratch.logits[row] = work.logits + at * model.vocab;
        }
        work.state.token[lane] = before;
    }
    for (std::size_t number = 0; number < model.layers; ++number) {
        mix_time<Dot>(work, number);
        add_product<Dot>(work, model.layer[number].out, work.scratch.operand);
        mix_channels<Dot>(work, number);
    }
    predict<Dot>(work);
}

}  // namespace
}  // namespace lmfs::engine
