// A few threads that share the pieces of one job.
//
// The calling thread works too, and waits only for pieces that another thread has begun: where
// the others get no processor, it does all of them. One job at a time; who finds the workers busy
// runs its job alone. Which thread runs a piece cannot change a result.
//
// A ticket is (job's number << 32 | pieces not yet begun). Whoever lowers it by one owns a piece
// of that job; the job then stays in place until the piece is done.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace lmfs::engine {

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
        start();
        call_ = [](const void* context, std::size_t k) { (*static_cast<const Piece*>(context))(k); };
        context_ = &piece;
        unfinished_.store(pieces, std::memory_order_relaxed);
        job_ = job_ % (kJobs - 1) + 1;
        ticket_.store(job_ << 32 | pieces);
        ticket_.notify_all();
        while (work()) continue;
        for (std::size_t spins = 0; unfinished_.load(std::memory_order_acquire) != 0; ++spins)
            if (spins > kSpins) std::this_thread::yield();
    }

private:
    static constexpr std::uint64_t kJobs = std::uint64_t{1} << 31;
    static constexpr std::uint64_t kStop = ~std::uint64_t{0};
    static constexpr std::size_t kSpins = 4096;  // some 40 us: about as long as the coder takes

    void start() {
        while (workers_.size() + 1 < threads_) workers_.emplace_back([this] { serve(); });
    }

    // One piece of the job there is, if any.
    bool work() {
        std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
        do {
            if (ticket == kStop || (ticket & 0xffff'ffff) == 0) return false;
        } while (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel));
        call_(context_, (ticket & 0xffff'ffff) - 1);
        unfinished_.fetch_sub(1, std::memory_order_release);
        return true;
    }

    void serve() {
        while (true) {
            while (work()) continue;
            std::uint64_t seen = ticket_.load();
            for (std::size_t spins = 0; spins < kSpins && (seen & 0xffff'ffff) == 0; ++spins) {
                pause();
                seen = ticket_.load();
            }
            if (seen == kStop) return;
            if ((seen & 0xffff'ffff) == 0) ticket_.wait(seen);
        }
    }

    static void pause() {
#if defined(__GNUC__) && defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__GNUC__) && defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    std::size_t threads_;
    std::mutex busy_;
    std::vector<std::thread> workers_;
    std::atomic<std::uint64_t> ticket_{0};
    std::atomic<std::size_t> unfinished_{0};
    std::uint64_t job_ = 0;
    void (*call_)(const void*, std::size_t) = nullptr;
    const void* context_ = nullptr;
};

}  // namespace lmfs::engine
