// A few threads that share the pieces of one job.
//
// The calling thread works too, and waits only for pieces that another thread has begun: where
// the others get no processor, it does all of them. One job at a time; who finds the workers busy
// runs its job alone. Which thread runs a piece cannot change a result.
//
// Pieces may also be run by a team: threads that are there at the same time and wait for each
// other. Who is not there within some microseconds is not in the team. A member that loses its
// processor holds up the others; then there is no team for a while, twice as long each time.
//
// A ticket is (job's number << 32 | pieces not yet begun). Whoever lowers it by one owns a piece
// of that job; the job then stays in place until the piece is done.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace lmfs::engine {

// Where the members of a team wait for each other. Each says on a cache line of its own how often it
// has come, and looks at those of the others: a line travels once from one processor to another.
class Barrier {
public:
    static constexpr std::size_t kMostMembers = 32;

    explicit Barrier(std::size_t members) : members_(members) {}

    void wait(std::size_t member) {
        const std::size_t round = places_[member].round.load(std::memory_order_relaxed) + 1;
        places_[member].round.store(round, std::memory_order_release);
        for (std::size_t other = 0; other < members_; ++other)
            if (!spin_until([&] {
                    return places_[other].round.load(std::memory_order_acquire) >= round;
                }))
                late_.store(true, std::memory_order_relaxed);
    }

    // Whether somebody had to wait for long.
    bool late() const { return late_.load(std::memory_order_relaxed); }

    // Until done(); gives the processor away, and returns false, when that takes long.
    template <class Done>
    static bool spin_until(const Done& done) {
        std::size_t spins = 0;
        for (; !done(); ++spins)
            if (spins < kSpins)
                pause();
            else
                std::this_thread::yield();
        return spins <= kSpins;
    }

    static void pause() {
#if defined(__GNUC__) && defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__GNUC__) && defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    static constexpr std::size_t kSpins = 4096;  // some 50 us: more than the coder's turn takes

private:
    struct alignas(64) Place {
        std::atomic<std::size_t> round{0};
    };

    std::size_t members_;
    std::atomic<bool> late_{false};
    std::array<Place, kMostMembers> places_;
};

class Workers {
public:
    explicit Workers(std::size_t threads) : threads_(threads) {}

    Workers(const Workers&) = delete;
    Workers& operator=(const Workers&) = delete;

    ~Workers() {
        ticket_.store(kStop);
        ticket_.notify_all();
        for (std::thread& worker : workers_) worker.join();
    }

    std::size_t threads() const { return threads_; }

    // piece(k) for every k below `pieces`, in any order; it must not throw.
    template <class Piece>
    void run(std::size_t pieces, const Piece& piece) {
        std::unique_lock<std::mutex> lock(busy_, std::defer_lock);
        if (pieces < 2 || threads_ < 2 || !lock.try_lock()) {
            for (std::size_t k = 0; k < pieces; ++k) piece(k);
            return;
        }
        offer(pieces, piece);
        while (work()) continue;
        finish();
    }

    // member(k, team) for every member k of a team of at most `most`, all at the same time.
    template <class Member>
    void run_team(std::size_t most, const Member& member) {
        most = std::min({most, threads_, Barrier::kMostMembers});
        std::unique_lock<std::mutex> lock(busy_, std::defer_lock);
        if (most < 2 || !lock.try_lock() || (alone_ > 0 && alone_-- > 0)) {
            Barrier alone(1);
            member(0, 1, alone);
            return;
        }
        std::atomic<std::size_t> joined{1}, members{0};
        std::optional<Barrier> barrier;
        const auto join = [&](std::size_t) {
            const std::size_t number = joined.fetch_add(1);
            Barrier::spin_until([&] { return members.load(std::memory_order_acquire) != 0; });
            member(number, members.load(std::memory_order_relaxed), *barrier);
        };
        offer(most - 1, join);
        for (std::size_t spins = 0; spins < kJoinSpins && left(ticket_.load()) != 0; ++spins)
            Barrier::pause();
        const std::size_t absent = left(ticket_.fetch_and(~kLeft));
        unfinished_.fetch_sub(absent, std::memory_order_relaxed);
        barrier.emplace(most - absent);
        members.store(most - absent, std::memory_order_release);
        member(0, most - absent, *barrier);
        finish();
        penalty_ = barrier->late() ? std::min(2 * penalty_ + kPenalty, kMaxPenalty) : penalty_ / 2;
        if (barrier->late()) alone_ = penalty_;
    }

private:
    static constexpr std::uint64_t kJobs = std::uint64_t{1} << 31;
    static constexpr std::uint64_t kLeft = 0xffff'ffff;
    static constexpr std::uint64_t kStop = ~kLeft;  // of no job: those are below kJobs
    static constexpr std::size_t kJoinSpins = 200;  // some 3 us
    static constexpr std::size_t kPenalty = 32;     // runs without a team
    static constexpr std::size_t kMaxPenalty = 8192;

    static std::size_t left(std::uint64_t ticket) { return ticket & kLeft; }

    template <class Piece>
    void offer(std::size_t pieces, const Piece& piece) {
        while (workers_.size() + 1 < threads_) workers_.emplace_back([this] { serve(); });
        call_ = [](const void* context, std::size_t k) {
            (*static_cast<const Piece*>(context))(k);
        };
        context_ = &piece;
        unfinished_.store(pieces, std::memory_order_relaxed);
        job_ = job_ % (kJobs - 1) + 1;
        ticket_.store(job_ << 32 | pieces);
        ticket_.notify_all();
    }

    void finish() {
        Barrier::spin_until([&] { return unfinished_.load(std::memory_order_acquire) == 0; });
    }

    // One piece of the job there is, if any.
    bool work() {
        std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
        do {
            if (left(ticket) == 0) return false;
        } while (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel));
        call_(context_, left(ticket) - 1);
        unfinished_.fetch_sub(1, std::memory_order_release);
        return true;
    }

    void serve() {
        while (true) {
            while (work()) continue;
            std::uint64_t seen = ticket_.load();
            for (std::size_t spins = 0; spins < Barrier::kSpins && seen != kStop && left(seen) == 0;
                 ++spins) {
                Barrier::pause();
                seen = ticket_.load();
            }
            if (seen == kStop) return;
            if (left(seen) == 0) ticket_.wait(seen);
        }
    }

    std::size_t threads_;
    std::mutex busy_;
    std::vector<std::thread> workers_;
    std::atomic<std::uint64_t> ticket_{0};
    std::atomic<std::size_t> unfinished_{0};
    std::uint64_t job_ = 0;
    std::size_t alone_ = 0;  // so many runs yet
    std::size_t penalty_ = 0;
    void (*call_)(const void*, std::size_t) = nullptr;
    const void* context_ = nullptr;
};

}  // namespace lmfs::engine
