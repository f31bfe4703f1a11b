// The model's arithmetic, for one instruction set: included by engine_*.cpp, one each.
//
// A file that includes this one defines a Dot, whose multiply<Rows>() gives the results of one block
// of outputs for so many rows, at most kRowsTogether, and multiply_fired() those of one row from the
// quads alone that are not all zeros, which is worth it below kDenseFrom rows; all else here is written so that compilers vectorise it. Everything has internal linkage, so that no function built for
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

// Blocks of channels or outputs that one member of the team computes.
struct Share {
    std::size_t first;
    std::size_t last;
};

Share share_of(const Work& work, std::size_t blocks) {
    return {blocks * work.member / work.team.members,
            blocks * (work.member + 1) / work.team.members};
}

void wait_for_team(const Work& work) {
    if (work.team.members > 1) work.team.wait(work.team.context, work.member);
}

// As many rows as there are and Dot takes together, half of that, and so on; returns the next row.
template <class Dot, std::size_t Rows, class Finish>
std::size_t multiply_rows(const Matrix& matrix, std::size_t block, const std::uint8_t* x,
                          std::size_t stride, std::size_t row, std::size_t rows,
                          const Finish& finish) {
    alignas(64) std::int32_t values[Rows][kBlock];
    for (; row + Rows <= rows; row += Rows) {
        Dot::template multiply<Rows>(matrix, block, x + row * stride, stride, values);
        for (std::size_t k = 0; k < Rows; ++k) finish(block, row + k, values[k]);
    }
    if constexpr (Rows > 1)
        row = multiply_rows<Dot, Rows / 2>(matrix, block, x, stride, row, rows, finish);
    return row;
}

// Calls finish(block, row, values) with the kBlock results of each block of outputs and row.
template <class Dot, class Finish>
void product(const Matrix& matrix, Share blocks, const std::uint8_t* x, std::size_t stride,
             std::size_t rows, const Finish& finish) {
    for (std::size_t block = blocks.first; block < blocks.last; ++block)
        multiply_rows<Dot, Dot::kRowsTogether>(matrix, block, x, stride, 0, rows, finish);
}

// As product(), for rows of which most quads are zeros: `fired` takes which are not.
template <class Dot, class Finish>
void sparse_product(const Matrix& matrix, Share blocks, const std::uint8_t* x, std::size_t rows,
                    std::uint16_t* fired, const Finish& finish) {
    const std::size_t quads = matrix.inputs / kQuad;
    std::size_t counts[kRows];
    for (std::size_t row = 0; row < rows; ++row) {
        std::size_t count = 0;
        for (std::size_t quad = 0; quad < quads; ++quad) {
            std::uint32_t bytes;
            __builtin_memcpy(&bytes, x + row * matrix.inputs + quad * kQuad, sizeof bytes);
            fired[row * quads + count] = static_cast<std::uint16_t>(quad * kQuad);
            count += bytes != 0;
        }
        counts[row] = count;
    }
    alignas(64) std::int32_t values[kBlock];
    for (std::size_t block = blocks.first; block < blocks.last; ++block)
        for (std::size_t row = 0; row < rows; ++row) {
            Dot::multiply_fired(matrix, block, x + row * matrix.inputs, fired + row * quads,
                                counts[row], values);
            finish(block, row, values);
        }
}

void embed(const Model& model, std::int64_t before, std::int64_t token, Share share,
           std::int16_t* x) {
    const std::size_t width = model.width;
    const auto pair = static_cast<std::size_t>(before * kHashPast + token * kHashNow);
    const std::int8_t* one = model.embed + static_cast<std::size_t>(token) * width;
    const std::int8_t* two = model.embed_pair + pair % model.hash_rows * width;
    for (std::size_t c = share.first * kBlock; c < share.last * kBlock; ++c)
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
    // Copies: bytes may be stored anywhere, into `shift` too, and the loop would not be vectorised.
    const std::int16_t* now = shift.now;
    const std::int16_t* past = shift.past;
    for (std::size_t c = 0; c < width; ++c) {
        const std::int32_t mixed = (n[c] * now[c] + before[c] * past[c] + 32) >> 6;
        operand[c] =
            static_cast<std::uint8_t>(clip(mixed, -kActivationMax, kActivationMax) + kUnsigned);
    }
}

// The normalised activations of the lanes' last tokens; `part` is 0 for time mixing, 1 for the MLP.
std::int8_t* before_of(const Work& work, std::size_t lane, std::size_t layer, std::size_t part) {
    const Model& model = *work.model;
    return work.state.n + ((lane * model.layers + layer) * 2 + part) * model.width;
}

// Normalisation and token shift of every row, by every member of the team for itself.
void norm_and_shift(const Work& work, std::size_t layer, std::size_t part) {
    const Model& model = *work.model;
    const std::size_t width = model.width;
    const Shift& shift =
        part == 0 ? model.layer[layer].shift_time : model.layer[layer].shift_channel;
    for (std::size_t lane = 0; lane < work.lanes; ++lane) {
        const std::int8_t* before = before_of(work, lane, layer, part);
        for (std::size_t t = 0; t < work.time; ++t) {
            const std::size_t row = (lane * work.time + t) * width;
            std::int8_t* n = work.scratch.n + row;
            normalise(model, work.scratch.x + row, n);
            shift_tokens(shift, n, before, width, work.scratch.operand + row);
            before = n;
        }
    }
}

// Keeps what norm_and_shift made of the last tokens, once the whole team has read the old state.
void keep_last(const Work& work, std::size_t layer, std::size_t part) {
    const std::size_t width = work.model->width;
    const Share share = share_of(work, width / kBlock);
    for (std::size_t lane = 0; lane < work.lanes; ++lane) {
        std::int8_t* before = before_of(work, lane, layer, part);
        const std::int8_t* n = work.scratch.n + ((lane + 1) * work.time - 1) * width;
        for (std::size_t c = share.first * kBlock; c < share.last * kBlock; ++c) before[c] = n[c];
    }
}

// h += u^2 (c - h), then the product of h and its gate; u in 1/32, h and c in 2^-12, g in 1/32.
void recur(const std::int16_t* gates, std::size_t width, Share channels, std::int16_t* h,
           std::uint8_t* mixed) {
    const std::int16_t* candidate = gates + width;
    const std::int16_t* out_gate = gates + 2 * width;
    for (std::size_t c = channels.first; c < channels.last; ++c) {
        const std::int32_t u = gates[c];
        const std::int32_t state = h[c] + ((u * u * (candidate[c] - h[c]) + 512) >> 10);
        const std::int32_t gated = (state * out_gate[c] + 1024) >> 11;
        h[c] = static_cast<std::int16_t>(state);
        mixed[c] =
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
    const Share share = share_of(work, width / kBlock);
    norm_and_shift(work, number, 0);
    const auto gate = [&](std::size_t section, std::int32_t low, std::int32_t high) {
        const std::size_t skipped = section * width / kBlock;
        product<Dot>(layer.in, {skipped + share.first, skipped + share.last}, scratch.operand,
                     width, rows,
                     [&](std::size_t block, std::size_t row, const std::int32_t* values) {
                         std::int16_t* to = scratch.gates + row * 3 * width + block * kBlock;
                         for (std::size_t o = 0; o < kBlock; ++o)
                             to[o] = static_cast<std::int16_t>(clip(values[o], low, high));
                     });
    };
    gate(0, 0, kGateMax);
    gate(1, -kStateMax, kStateMax);
    gate(2, -kActivationMax, kActivationMax);
    const Share channels{share.first * kBlock, share.last * kBlock};
    for (std::size_t lane = 0; lane < work.lanes; ++lane) {
        std::int16_t* h = work.state.h + (lane * model.layers + number) * width;
        for (std::size_t t = 0; t < work.time; ++t) {
            const std::size_t row = lane * work.time + t;
            recur(scratch.gates + row * 3 * width, width, channels, h,
                  scratch.mixed + row * width);
        }
    }
    wait_for_team(work);
    keep_last(work, number, 0);
}

// x += matrix * operand, clipped; most of the operand's quads are zeros if it is sparse.
template <class Dot, bool Sparse>
void add_product(const Work& work, const Matrix& matrix, const std::uint8_t* operand) {
    const std::size_t width = work.model->width;
    const std::size_t rows = work.lanes * work.time;
    const Share blocks = share_of(work, width / kBlock);
    const auto add = [&](std::size_t block, std::size_t row, const std::int32_t* values) {
        std::int16_t* x = work.scratch.x + row * width + block * kBlock;
        for (std::size_t o = 0; o < kBlock; ++o)
            x[o] = static_cast<std::int16_t>(clip(x[o] + values[o], -kResidualMax, kResidualMax));
    };
    if (Sparse && rows < Dot::kDenseFrom)
        sparse_product<Dot>(matrix, blocks, operand, rows, work.scratch.fired, add);
    else
        product<Dot>(matrix, blocks, operand, matrix.inputs, rows, add);
    wait_for_team(work);
}

template <class Dot>
void mix_channels(const Work& work, std::size_t number) {
    const Layer& layer = work.model->layer[number];
    const Scratch& scratch = work.scratch;
    const std::size_t stride = layer.down.inputs;
    norm_and_shift(work, number, 1);
    product<Dot>(layer.up, share_of(work, layer.up.outputs / kBlock), scratch.operand,
                 work.model->width, work.lanes * work.time,
                 [&](std::size_t block, std::size_t row, const std::int32_t* values) {
                     std::uint8_t* to = scratch.squares + row * stride + block * kBlock;
                     for (std::size_t o = 0; o < kBlock; ++o) {
                         const std::int32_t z = clip(values[o], 0, kHiddenMax);
                         to[o] =
                             static_cast<std::uint8_t>(smaller((z * z + 128) >> 8, kSquareMax));
                     }
                 });
    wait_for_team(work);
    keep_last(work, number, 1);
    add_product<Dot, true>(work, layer.down, scratch.squares);
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
    product<Dot>(model.head, share_of(work, model.head.outputs / kBlock), scratch.operand, width,
                 rows, [&](std::size_t block, std::size_t row, const std::int32_t* values) {
                     const std::size_t at = row / work.time * work.stride + row % work.time;
                     std::int16_t* to = work.logits + at * model.vocab + block * kBlock;
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
    const Share share = share_of(work, model.width / kBlock);
    for (std::size_t lane = 0; lane < work.lanes; ++lane) {
        const std::int64_t* tokens = work.tokens + lane * work.stride;
        std::int16_t* x = work.scratch.x + lane * work.time * model.width;
        for (std::size_t t = 0; t < work.time; ++t)
            embed(model, t == 0 ? work.state.token[lane] : tokens[t - 1], tokens[t], share,
                  x + t * model.width);
    }
    wait_for_team(work);
    for (std::size_t lane = 0; work.member == 0 && lane < work.lanes; ++lane)
        work.state.token[lane] = work.tokens[lane * work.stride + work.time - 1];
    for (std::size_t number = 0; number < model.layers; ++number) {
        mix_time<Dot>(work, number);
        add_product<Dot, false>(work, model.layer[number].out, work.scratch.mixed);
        mix_channels<Dot>(work, number);
    }
    predict<Dot>(work);
}

}  // namespace
}  // namespace lmfs::engine
