// What the kernels of the engine see of a model, its state and one piece of work: plain data.
//
// This header and engine_kernel.hpp are compiled once for each instruction set. They use nothing
// of the standard library that is a function: an inline function compiled for AVX2 could be the
// copy that the linker keeps for everybody.
//
// Numbers are integers on the grids of tools/exact_model.py. A *row* is one lane at one time.

#pragma once

#include <cstddef>
#include <cstdint>

namespace lmfs::engine {

inline constexpr std::size_t kBlock = 32;  // outputs that are computed together
inline constexpr std::size_t kQuad = 4;    // inputs that one instruction sums
inline constexpr std::size_t kGroup = 4;   // quads whose sum of products still fits 16 bits
inline constexpr std::size_t kRows = 32;   // of one piece of work: what keeps it in the L2 cache

// How the weights of a matrix lie: for kernels that sum in 16 bits as far as they can, with bytes
// interleaved or in planes of 16 bits each, or interleaved in the order of their inputs.
enum class Packing { grouped, planes, plain };

// One matrix, packed. Its result for a row x of bytes is
//     ((sum of x * weight << left) + bias) >> right        for each output
// where the bias makes up for activations that were shifted to be unsigned.
struct Matrix {
    std::size_t inputs;          // a multiple of kQuad
    std::size_t outputs;         // a multiple of kBlock
    const std::int8_t* weights;  // [block][quad][kBlock][kQuad]; or null, and
    const std::int16_t* planes;  // [block][quad][kQuad][kBlock]
    const std::uint16_t* order;  // [block][quad]: where in x the quad begins
    const std::uint16_t* grouped;  // [block]: so many quads at the front lie in safe groups; none
                                   // where they are left in their order
    const std::int32_t* bias;      // [output]
    const std::int32_t* left;      // [output]
    const std::int32_t* right;     // [output]
};

// Coefficients of the token shift, in 1/64: width each.
struct Shift {
    const std::int16_t* now;
    const std::int16_t* past;
};

struct Layer {
    Shift shift_time;
    Shift shift_channel;
    Matrix in;  // gate, candidate, output gate
    Matrix out;
    Matrix up;
    Matrix down;
};

struct Model {
    std::size_t vocab;
    std::size_t width;
    std::size_t layers;
    std::size_t hash_rows;
    std::int32_t norm_shift;         // x * share >> norm_shift is on the normalised grid
    const std::int8_t* embed;        // (vocab, width)
    const std::int8_t* embed_pair;   // (hash_rows, width)
    const Layer* layer;              // layers
    Matrix head;
};

// The state of the first lane of a piece of work; the lanes' states follow one another.
struct State {
    std::int64_t* token;  // the token before
    std::int16_t* h;      // [lane][layer][width]
    std::int8_t* n;       // [lane][layer][2][width]: normalised activations of the token before
};

// Room for the rows of one piece of work. The members of a team share it, but for the two
// buffers that each of them fills for itself.
struct Scratch {
    std::int16_t* x;        // [row][width], the residual stream
    std::int16_t* gates;    // [row][3 width]: gate, candidate, output gate
    std::uint8_t* mixed;    // [row][width], + 128: h and its gate multiplied
    std::uint8_t* squares;  // [row][inputs of down]
    std::uint16_t* fired;   // each member's: where in a row of squares the quads but zeros begin
    std::int8_t* n;         // each member's: [row][width], normalised
    std::uint8_t* operand;  // each member's: [row][width], + 128: what goes into a product
};

// Threads that run one piece of work together: each does its share of the outputs of every
// product, and of the channels of what follows it.
struct Team {
    std::size_t members;
    void (*wait)(void* context, std::size_t member);  // until every member is there
    void* context;
};

// `lanes` x `time` tokens to be run, lanes * time at most kRows.
struct Work {
    const Model* model;
    std::size_t lanes;
    std::size_t time;
    State state;
    const std::int64_t* tokens;  // of lane l at time t: tokens[l * stride + t]
    std::int16_t* logits;        // likewise: logits[(l * stride + t) * vocab]
    std::size_t stride;
    Scratch scratch;
    Team team;
    std::size_t member;  // which of the team this is
};

// Runs a piece of work; the state then is that after its tokens.
using Kernel = void (*)(const Work&);

}  // namespace lmfs::engine
