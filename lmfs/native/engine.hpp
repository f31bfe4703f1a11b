// The engine: a packed model, the instruction set it is packed for, and the threads that run it.
//
// An Engine does not change after it was made and may be shared by threads; Lanes belong to one
// caller at a time.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "engine_model.hpp"
#include "engine_threads.hpp"
#include "engine_views.hpp"

namespace lmfs::engine {

// An instruction set, the kernel for it, and the order in which it wants the weights.
struct Isa {
    const char* name;
    Kernel run;
    Packing packing;
};

// Those that this processor has, the best first; "portable" is the last. Each but the last has
// shown in this process that it computes what the portable kernel does.
const std::vector<Isa>& usable_isas();

// The state of some lanes.
class Lanes {
public:
    Lanes(const Sizes& sizes, std::size_t lanes)
        : h_size_(sizes.layers * sizes.width),
          tokens_(lanes, 0),
          h_(lanes * h_size_, 0),
          n_(lanes * 2 * h_size_, 0) {}

    std::size_t size() const { return tokens_.size(); }

    // raises: std::invalid_argument for a lane that is not here
    Lanes select(const std::int64_t* lanes, std::size_t count) const;

    // All lanes of these, in this order; they are of one engine.
    // raises: std::invalid_argument where there are none, or their states differ in size
    static Lanes join(const std::vector<const Lanes*>& parts);

    State from(std::size_t lane) {
        return {tokens_.data() + lane, h_.data() + lane * h_size_, n_.data() + lane * 2 * h_size_};
    }

private:
    explicit Lanes(std::size_t h_size) : h_size_(h_size) {}

    std::size_t h_size_;
    std::vector<std::int64_t> tokens_;
    std::vector<std::int16_t> h_;
    std::vector<std::int8_t> n_;
};

class Engine {
public:
    // isa: a name from usable_isas(), or empty for the best
    // raises: std::invalid_argument, also for an instruction set that this processor has not
    Engine(const Sizes& sizes, const Tensors& tensors, std::string_view isa, std::size_t threads);

    const PackedModel& model() const { return model_; }
    const char* isa() const { return isa_.name; }
    std::size_t threads() const { return workers_.threads(); }

    // tokens: lanes x time; logits: lanes x time x vocab. The lanes are then after these tokens.
    // alone: by the calling thread only, for the others have work of their own
    // raises: std::invalid_argument for a token that is not in the vocabulary; then nothing moved
    void run(Lanes& lanes, const std::int64_t* tokens, std::size_t time, std::int16_t* logits,
             bool alone = false);

private:
    class Room;

    std::unique_ptr<Room> take_room(std::size_t members);
    void give_back(std::unique_ptr<Room> room);

    Isa isa_;
    PackedModel model_;
    Model view_;
    std::mutex rooms_lock_;
    std::vector<std::unique_ptr<Room>> rooms_;
    Workers workers_;

public:
    ~Engine();
};

}  // namespace lmfs::engine
