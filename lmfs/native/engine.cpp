#include "engine.hpp"

#include <algorithm>
#include <cmath>
#include <deque>
#include <stdexcept>
#include <utility>

#include "engine_isa.hpp"

#if defined(LMFS_HAVE_AVX2)
#include <cpuid.h>
#endif

namespace lmfs::engine {

// From so many lanes for each of some threads on, each had better step lanes of its own.
constexpr std::size_t kLanesOfThread = 3;

// The buffers of one piece of work, for a team of some size.
class Engine::Room {
public:
    Room(const PackedModel& model, std::size_t members)
        : members_(members),
          width_(model.sizes().width),
          x_(kRows * width_),
          gates_(kRows * 3 * width_),
          mixed_(kRows * width_),
          squares_(kRows * model.padded_hidden()),
          n_(members * kRows * width_),
          operand_(members * kRows * width_),
          quads_(kRows * model.padded_hidden() / kQuad),
          fired_(members * quads_) {}

    std::size_t members() const { return members_; }

    Scratch view(std::size_t member) {
        const std::size_t own = member * kRows * width_;
        return {x_.data(),
                gates_.data(),
                mixed_.data(),
                squares_.data(),
                fired_.data() + member * quads_,
                n_.data() + own,
                operand_.data() + own};
    }

private:
    std::size_t members_;
    std::size_t width_;
    AlignedVector<std::int16_t> x_;
    AlignedVector<std::int16_t> gates_;
    AlignedVector<std::uint8_t> mixed_;
    AlignedVector<std::uint8_t> squares_;
    AlignedVector<std::int8_t> n_;
    AlignedVector<std::uint8_t> operand_;
    std::size_t quads_;
    AlignedVector<std::uint16_t> fired_;
};

Lanes Lanes::select(const std::int64_t* lanes, std::size_t count) const {
    Lanes chosen(h_size_);
    chosen.tokens_.reserve(count);
    chosen.h_.reserve(count * h_size_);
    chosen.n_.reserve(count * 2 * h_size_);
    for (std::size_t k = 0; k < count; ++k) {
        if (lanes[k] < 0 || static_cast<std::size_t>(lanes[k]) >= size())
            throw std::invalid_argument("lane " + std::to_string(lanes[k]) + " of " +
                                        std::to_string(size()));
        const auto lane = static_cast<std::ptrdiff_t>(lanes[k]);
        const auto size_h = static_cast<std::ptrdiff_t>(h_size_);
        chosen.tokens_.push_back(tokens_[static_cast<std::size_t>(lane)]);
        const auto h = h_.begin() + lane * size_h;
        chosen.h_.insert(chosen.h_.end(), h, h + size_h);
        const auto n = n_.begin() + lane * 2 * size_h;
        chosen.n_.insert(chosen.n_.end(), n, n + 2 * size_h);
    }
    return chosen;
}

Lanes Lanes::join(const std::vector<const Lanes*>& parts) {
    if (parts.empty()) throw std::invalid_argument("no lanes to join");
    Lanes joined(parts.front()->h_size_);
    for (const Lanes* part : parts) {
        if (part->h_size_ != joined.h_size_)
            throw std::invalid_argument("lanes of different engines");
        joined.tokens_.insert(joined.tokens_.end(), part->tokens_.begin(), part->tokens_.end());
        joined.h_.insert(joined.h_.end(), part->h_.begin(), part->h_.end());
        joined.n_.insert(joined.n_.end(), part->n_.begin(), part->n_.end());
    }
    return joined;
}

namespace {

const Isa& isa_of(std::string_view name) {
    const std::vector<Isa>& isas = usable_isas();
    if (name.empty()) return isas.front();
    std::string known;
    for (const Isa& isa : isas) {
        if (name == isa.name) return isa;
        known += (known.empty() ? "" : ", ") + std::string(isa.name);
    }
    throw std::invalid_argument("instruction set " + std::string(name) + ": this processor has " +
                                known);
}

}  // namespace

Engine::Engine(const Sizes& sizes, const Tensors& tensors, std::string_view isa,
               std::size_t threads)
    : isa_(isa_of(isa)),
      model_(sizes, tensors, isa_.packing),
      view_(model_.view()),
      workers_(std::max<std::size_t>(threads, 1)) {}

Engine::~Engine() = default;

void Engine::run(Lanes& lanes, const std::int64_t* tokens, std::size_t time,
                 std::int16_t* logits, bool alone) {
    const auto vocab = static_cast<std::int64_t>(model_.sizes().vocab);
    for (std::size_t k = 0; k < lanes.size() * time; ++k)
        if (tokens[k] < 0 || tokens[k] >= vocab)
            throw std::invalid_argument("token " + std::to_string(tokens[k]) +
                                        " is not in the vocabulary");
    if (lanes.size() == 0 || time == 0) return;
    // Some lanes, all their tokens: in windows of as many tokens as there is room for.
    const auto run_lanes = [&](std::size_t first, std::size_t count, Room& room, Team team,
                               std::size_t member) {
        const std::size_t window = kRows / count;
        for (std::size_t at = 0; at < time; at += window) {
            const std::size_t offset = first * time + at;
            isa_.run({&view_, count, std::min(window, time - at), lanes.from(first),
                      tokens + offset, logits + offset * model_.sizes().vocab, time,
                      room.view(member), team, member});
            if (team.members > 1) team.wait(team.context, member);
        }
    };
    const std::size_t threads = alone ? 1 : workers_.threads();
    // Steps of few lanes take as long as it takes to read the weights: threads read a part of them
    // each, and step the lanes together.
    if (threads > 1 && lanes.size() < threads * (time == 1 ? kLanesOfThread : 1)) {
        const std::size_t most = std::min(threads, model_.sizes().width / kBlock);
        std::unique_ptr<Room> room = take_room(most);
        const std::size_t count = std::min(lanes.size(), kRows);
        workers_.run_team(most, [&](std::size_t member, std::size_t members, Barrier& barrier) {
            const auto wait = [](void* context, std::size_t place) {
                static_cast<Barrier*>(context)->wait(place);
            };
            for (std::size_t first = 0; first < lanes.size(); first += count)
                run_lanes(first, std::min(count, lanes.size() - first), *room,
                          {members, wait, &barrier}, member);
        });
        give_back(std::move(room));
        return;
    }
    const std::size_t share = (lanes.size() + threads - 1) / threads;
    const std::size_t count = std::min(share, std::max<std::size_t>(kRows / time, 1));
    const std::size_t groups = (lanes.size() + count - 1) / count;
    const auto run_group = [&](std::size_t group) {
        const std::size_t first = group * count;
        std::unique_ptr<Room> room = take_room(1);
        run_lanes(first, std::min(count, lanes.size() - first), *room, {1, nullptr, nullptr}, 0);
        give_back(std::move(room));
    };
    if (threads > 1) {
        workers_.run(groups, run_group);
    } else {
        for (std::size_t group = 0; group < groups; ++group) run_group(group);
    }
}

std::unique_ptr<Engine::Room> Engine::take_room(std::size_t members) {
    {
        const std::lock_guard<std::mutex> lock(rooms_lock_);
        const auto found =
            std::find_if(rooms_.begin(), rooms_.end(),
                         [&](const auto& room) { return room->members() == members; });
        if (found != rooms_.end()) {
            std::unique_ptr<Room> room = std::move(*found);
            rooms_.erase(found);
            return room;
        }
    }
    return std::make_unique<Room>(model_, members);
}

void Engine::give_back(std::unique_ptr<Room> room) {
    const std::lock_guard<std::mutex> lock(rooms_lock_);
    rooms_.push_back(std::move(room));
}

// --- instruction sets --------------------------------------------------------

namespace {

// A small model with random weights over their whole range, for the comparison below.
class TrialModel {
public:
    static constexpr Sizes kSizes{50, 32, 2, 40, 16};

    TrialModel() {
        add_bytes("embed", kSizes.vocab, kSizes.width, -127, 127);
        add_bytes("embed_pair", kSizes.hash_rows, kSizes.width, -127, 127);
        for (std::size_t k = 0; k < kSizes.layers; ++k) {
            const std::string name = "layer" + std::to_string(k);
            for (const char* part : {".shift_time.now", ".shift_time.past", ".shift_channel.now",
                                     ".shift_channel.past"})
                add_reals(name + part, kSizes.width, [&] { return between(-127, 127) / 64.0F; });
            add_matrix(name + ".in", kSizes.width, 3 * kSizes.width, 4);
            add_matrix(name + ".out", kSizes.width, kSizes.width, 3);
            add_matrix(name + ".up", kSizes.width, kSizes.hidden, 5);
            add_matrix(name + ".down", kSizes.hidden, kSizes.width, 5);
        }
        add_matrix("head", kSizes.width, kSizes.vocab, 0);
        for (std::int64_t& token : tokens_) token = between(0, static_cast<int>(kSizes.vocab) - 1);
    }

    // The logits of pieces of work of several shapes, one after the other.
    std::vector<std::int16_t> logits(const Isa& isa) const {
        const PackedModel model(kSizes, tensors_, isa.packing);
        const Model view = model.view();
        const std::size_t width = kSizes.width;
        std::vector<std::int16_t> result, x(kRows * width), gates(kRows * 3 * width),
            logits(kRows * kSizes.vocab);
        std::vector<std::int8_t> n(kRows * width);
        std::vector<std::uint8_t> mixed(kRows * width), operand(kRows * width),
            squares(kRows * model.padded_hidden());
        std::vector<std::uint16_t> fired(kRows * model.padded_hidden() / kQuad);
        for (const auto [count, time] : {std::pair<std::size_t, std::size_t>{7, 4},
                                         {3, 5},
                                         {1, 1},
                                         {2, 1},
                                         {1, 32}}) {
            Lanes lanes(kSizes, count);
            isa.run({&view, count, time, lanes.from(0), tokens_, logits.data(), time,
                     {x.data(), gates.data(), mixed.data(), squares.data(), fired.data(),
                      n.data(), operand.data()},
                     {1, nullptr, nullptr},
                     0});
            const auto end = static_cast<std::ptrdiff_t>(count * time * kSizes.vocab);
            result.insert(result.end(), logits.begin(), logits.begin() + end);
        }
        return result;
    }

private:
    int between(int low, int high) {
        random_ = random_ * 6364136223846793005U + 1442695040888963407U;
        return low + static_cast<int>((random_ >> 33) % static_cast<unsigned>(high - low + 1));
    }

    void add_bytes(const std::string& name, std::size_t rows, std::size_t columns, int low,
                   int high) {
        std::vector<std::int8_t>& data = bytes_.emplace_back();
        for (std::size_t k = 0; k < rows * columns; ++k)
            data.push_back(static_cast<std::int8_t>(between(low, high)));
        tensors_[name] = {data.data(), nullptr, {rows, columns}};
    }

    template <class Next>
    void add_reals(const std::string& name, std::size_t size, const Next& next) {
        std::vector<float>& data = reals_.emplace_back();
        for (std::size_t k = 0; k < size; ++k) data.push_back(next());
        tensors_[name] = {nullptr, data.data(), {size}};
    }

    // Every third matrix has small weights, so that they can be grouped.
    void add_matrix(const std::string& name, std::size_t inputs, std::size_t outputs, int bits) {
        const int most = ++matrices_ % 3 == 0 ? 12 : 63;
        add_bytes(name + ".weight", inputs, outputs, -most - 1, most);
        add_reals(name + ".scale", outputs,
                  [&] { return std::ldexp(1.0F, between(-1, 1) - bits); });
        add_reals(name + ".bias", outputs, [&] { return between(-99, 99) + 0.5F; });
    }

    std::uint64_t random_ = 20261123;
    int matrices_ = 0;
    std::deque<std::vector<std::int8_t>> bytes_;
    std::deque<std::vector<float>> reals_;
    Tensors tensors_;
    std::int64_t tokens_[kRows];
};

#if defined(LMFS_HAVE_AVX2)
bool has_avx_vnni() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 &&
           (a >> 4 & 1) != 0;
}

bool has_avx512_vnni() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#endif

std::vector<Isa> find_usable() {
    std::vector<Isa> built;
#if defined(LMFS_HAVE_AVX512_VNNI)
    if (has_avx512_vnni()) built.push_back({"avx512vnni", run_avx512_vnni, Packing::plain});
#endif
#if defined(LMFS_HAVE_AVX_VNNI)
    if (has_avx_vnni()) built.push_back({"avxvnni", run_avx_vnni, Packing::plain});
#endif
#if defined(LMFS_HAVE_AVX2)
    if (__builtin_cpu_supports("avx2")) built.push_back({"avx2", run_avx2, Packing::grouped});
#endif
    const Isa portable{"portable", run_portable, Packing::planes};
    if (!built.empty()) {
        const TrialModel trial;
        const std::vector<std::int16_t> wanted = trial.logits(portable);
        std::erase_if(built, [&](const Isa& isa) { return trial.logits(isa) != wanted; });
    }
    built.push_back(portable);
    return built;
}

}  // namespace

const std::vector<Isa>& usable_isas() {
    static const std::vector<Isa> usable = find_usable();
    return usable;
}

}  // namespace lmfs::engine
