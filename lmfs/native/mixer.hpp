// Context mixing along a token's path: what a model cannot know, learned while coding.
//
// A token is first guessed, as a whole: where some vote is good enough, one decision says whether the
// token is the one voted for. Only if it is not, its path (frequencies.hpp) is decided node by node.
// In logs nine of ten tokens are guessed, so the costly contexts are left to those that surprise.
//
// For every decision some predictions of its bit, each in the logistic domain, are added up with
// weights that are learned online (a gated linear mixture), and the sum is refined by adaptive
// probability maps. Predictions come from
//
//   contexts  what followed in hashed contexts (preceding tokens, words, columns, fields of lines,
//             the wrong guess): a slot of bit histories for every three levels of the path
//   runs      the token that followed last time in some of these contexts, with the history of
//             whether it was the one before; they vote
//   matches   the token that followed the longest and the latest repetition; they vote
//   model     the model's probability, where a model runs
//
// A chunk may be coded in strands (FORMAT.md): parts that go on side by side, token by token in turns,
// each with contexts of its own, while what is learned is everybody's.
//
// Everything is integer arithmetic that no compiler or machine may do differently: wrapping sums are
// unsigned, shifts of negative numbers are arithmetic (C++20). FORMAT.md specifies all of it.
//
// Units: a *stretched* probability is ln(p / (1 - p)) in 1/128 nat, from -2047 to 2047; weights have
// 13 fractional bits; probabilities 22, 16 where noted.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "frequencies.hpp"
#include "mixer_memory.hpp"
#include "mixer_profile.hpp"
#include "mixer_text.hpp"
#include "range_coder.hpp"
#include "vocabulary.hpp"

namespace lmfs {

// The state of one chunk, after its primer. Copies are independent.
class Mixer {
public:
    Mixer(std::shared_ptr<const MixerProfile> profile, std::shared_ptr<const Vocabulary> vocabulary)
        : profile_(std::move(profile)),
          vocabulary_(std::move(vocabulary)),
          adaptive_(profile_->initial),
          memory_(std::make_shared<Memory>(profile_->sizes)) {}

    // For one chunk of so many strands that follows this: with small tables of its own in front of
    // what is remembered here, if the profile has such; else a copy.
    Mixer branch(std::size_t strands) const {
        Mixer other(*this);
        if (!profile_->lane) return other;
        if (strands_.size() != 1 || is_branch_)
            throw std::invalid_argument("mixer: a branch of what is one chunk's");
        other.memory_ = std::make_shared<Memory>(profile_->lane_sizes(strands),
                                                 memory_->is_empty() ? nullptr : memory_);
        other.is_branch_ = true;
        return other;
    }

    // Back to an empty history, keeping what was learned of weights and maps.
    void forget() {
        memory_ = std::make_shared<Memory>(profile_->sizes);
        strands_.assign(1, Strand{});
        turn_ = 0;
        contradicts_ = false;
    }

    // What follows is one text of at most so many tokens, cut into strands that go on side by side:
    // each call of `token` is for the next strand, the first one's again behind the last. All begin
    // behind what was seen so far; what is learned, all know.
    void split(std::size_t strands, std::size_t tokens) {
        if (strands_.size() != 1 || strands == 0) throw std::invalid_argument("mixer: strands");
        if (strands == 1) return;
        strands_.assign(strands, strands_.front());
        const std::size_t room = tokens / strands + 1 + mixing::kBefore;
        Memory& memory = own();
        const std::size_t begin = memory.end();
        memory.end_at(begin + strands * room);
        for (std::size_t k = 1; k < strands; ++k) {
            strands_[k].end = begin + k * room;
            for (std::size_t i = 1; i <= mixing::kBefore; ++i)
                memory.put(strands_[k].end - i, memory.before(begin)[-static_cast<std::ptrdiff_t>(i)]);
        }
    }

    // One text again, which goes on behind the last strand.
    void join() {
        strands_.assign(1, Strand(strands_.back()));
        own().end_at(strands_.front().end);
        turn_ = 0;
    }

    // The next token. `decide(other, p1, guess)` gives its bits: whether it is `other` (a guess), or
    // whether it is `other` or one behind it. model: nullptr where none runs.
    template <typename Decide>
    std::size_t token(const Cumulative* model, Decide&& decide);

    // Takes these bytes for what stands before the chunk, cut into pieces and tokens as chunks are.
    // Returns what coding them would have cost, in bits.
    double prime(std::string_view bytes, std::size_t piece) {
        double bits = 0.0;  // measurement only
        for (std::size_t at = 0; at < bytes.size(); at += piece)
            for (const std::size_t token : vocabulary_->tokenize(bytes.substr(at, piece))) {
                double probability = 1.0;
                this->token(nullptr, [&](std::size_t other, std::uint32_t p1, bool guess = false) {
                    const bool bit = guess ? token == other : token >= other;
                    probability *= bit ? p1 : kProbabilityOne - p1;
                    probability /= kProbabilityOne;
                    return bit;
                });
                bits -= std::log2(probability);
            }
        return bits;
    }

    // Have the memory come nearer that the token `ahead` of the next one needs, at most one of each
    // strand; for when there is something else to do before it.
    void foresee(std::size_t ahead = 0) {
        Strand& strand = strands_[(turn_ + ahead) % strands_.size()];
        if (!strand.hashed) hash_contexts(strand);
        for (std::size_t k = 0; k < mixing::kRuns; ++k) memory_->foresee_run(k, run_hash(strand, k));
        const std::uint32_t place = place_of(1);
        for (std::size_t i = 0; i < mixing::kPlainContexts; ++i)
            memory_->foresee_slot(hash(strand.contexts[i], place));
    }

    // Whether some path led to the token that was just denied: no encoder says so. A decoder takes it
    // for damage; else a chunk had several blobs.
    bool contradicts() const { return contradicts_; }

    const mixing::Adaptive& adaptive() const { return adaptive_; }
    // Of memory, about; without what is shared with others.
    std::size_t used_bytes() const {
        std::size_t bytes = sizeof *this + memory_->used_bytes();
        for (const Strand& strand : strands_) bytes += sizeof strand + strand.text.size();
        return bytes;
    }
    const Vocabulary& vocabulary() const { return *vocabulary_; }

private:
    using Memory = mixing::Memory;
    using Run = mixing::Run;
    using Slot = mixing::Slot;

    struct Match {
        std::uint32_t at = 0;  // the number of a token; 0: none
        std::uint32_t length = 0;
        std::uint32_t misses = 0;
    };

    static constexpr std::uint32_t kLongest = 32;

    // Where a text goes on.
    struct Strand : mixing::TextPlace {
        std::size_t end = mixing::kBefore;  // the number of the next token
        std::array<Match, mixing::kMatches> matches{};
        std::array<std::uint32_t, mixing::kContexts> contexts{};
        bool hashed = false;  // contexts is that of the next token
    };

    static std::uint32_t hash(std::uint32_t a, std::uint32_t b) { return mixing::hash(a, b); }

    static int length_class(std::uint32_t length) {
        if (length < 8) return static_cast<int>(length);
        if (length < 16) return 8 + static_cast<int>(length - 8) / 4;
        if (length < 32) return 10 + static_cast<int>(length - 16) / 8;
        return length < 64 ? 12 : length < 128 ? 13 : length < 256 ? 14 : 15;
    }

    int stretch(std::uint32_t p16) const {
        const auto& table = profile_->tables.stretch;
        if (p16 < 4096) return table[4096 + p16];
        if (p16 >= 65536 - 4096) return table[8192 + 65535 - p16];
        return table[p16 >> 4];
    }

    std::uint32_t squash(int stretched) const {
        return profile_->tables.squash[stretched + mixing::kMaxStretch + 1];
    }

    void count(mixing::Counter& counter, bool bit) const {
        const std::uint32_t seen = counter & 1023;
        const auto p = static_cast<std::int32_t>(counter >> 10);
        const std::int32_t target = bit ? (1 << 22) - 1 : 0;
        const auto moved = static_cast<std::int32_t>(
            (std::int64_t{target - p} * profile_->tables.reciprocal[seen]) >> 16);
        counter = static_cast<std::uint32_t>(p + moved) << 10 |
                  std::min<std::uint32_t>(seen + 1, mixing::kMapLimit);
    }

    static std::uint32_t p16(mixing::Counter counter) { return counter >> 16; }

    // Sum of products, wrapping.
    template <int kCount>
    static std::int32_t dot(const std::int16_t* weights, const std::int16_t* inputs) {
#if defined(__SSE2__)
        __m128i sum = _mm_setzero_si128();
        for (int i = 0; i < kCount; i += 8)
            sum = _mm_add_epi32(
                sum, _mm_madd_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights + i)),
                                    _mm_loadu_si128(reinterpret_cast<const __m128i*>(inputs + i))));
        sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
        sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1));
        return _mm_cvtsi128_si32(sum);
#else
        std::uint32_t sum = 0;
        for (int i = 0; i < kCount; ++i)
            sum += static_cast<std::uint32_t>(std::int32_t{weights[i]} * inputs[i]);
        return static_cast<std::int32_t>(sum);
#endif
    }

    // weights += inputs * error / 2^16, rounded, saturating; error in 1/2^15.
    template <int kCount>
    static void learn(std::int16_t* weights, const std::int16_t* inputs, std::int16_t error) {
        // Every step would be rounded to 0: 2 * 2047 * 16 < 2^16.
        if (error >= -16 && error <= 16) return;
#if defined(__SSE2__)
        const __m128i by = _mm_set1_epi16(error);
        for (int i = 0; i < kCount; i += 8) {
            auto* at = reinterpret_cast<__m128i*>(weights + i);
            const __m128i input = _mm_loadu_si128(reinterpret_cast<const __m128i*>(inputs + i));
            const __m128i twice = _mm_mulhi_epi16(_mm_add_epi16(input, input), by);
            const __m128i step = _mm_srai_epi16(_mm_add_epi16(twice, _mm_set1_epi16(1)), 1);
            _mm_storeu_si128(at, _mm_adds_epi16(_mm_loadu_si128(at), step));
        }
#else
        for (int i = 0; i < kCount; ++i) {
            const std::int32_t step = ((std::int32_t{inputs[i]} * 2 * error >> 16) + 1) >> 1;
            weights[i] =
                static_cast<std::int16_t>(std::clamp<std::int32_t>(weights[i] + step, -32768, 32767));
        }
#endif
    }

    // A map's knots or a set of weights: of its 66 or 112 bytes all but a few, wherever it begins.
    static void prefetch_row(const void* row) {
        mixing::prefetch(row);
        mixing::prefetch(static_cast<const char*>(row) + 64);
    }

    // To be changed: nobody else's any more.
    Memory& own() {
        if (memory_.use_count() != 1) memory_ = std::make_shared<Memory>(*memory_);
        // Who had it as well has read what they read of it.
        std::atomic_thread_fence(std::memory_order_acquire);
        return *memory_;
    }

    // What tells apart the slots of a context; node: of the path, the bits so far behind a 1.
    static std::uint32_t place_of(std::size_t node) {
        return static_cast<std::uint32_t>(node) * 0x2545F491u;
    }

    static std::uint32_t run_hash(const Strand& strand, std::size_t k) {
        return hash(strand.contexts[static_cast<std::size_t>(mixing::kRunContext[k])], 77);
    }

    // What expects a token, before it is known.
    struct Votes {
        std::array<Run*, mixing::kRuns> runs;
        std::array<mixing::Counter*, mixing::kVotes> counters{};  // nullptr: no vote
        std::array<std::uint16_t, mixing::kVotes> tokens{};
        std::array<int, mixing::kMatches> lengths{};
        std::array<std::size_t, mixing::kMatches> misses{};
    };

    void hash_contexts(Strand& strand);
    void hash_contexts_after(Strand& strand, std::uint32_t guessed);
    Votes ask(const Strand& strand, Memory& memory);
    template <typename Decide>
    bool guess(const Votes& votes, std::size_t best, std::uint32_t last, const Cumulative* model,
               Decide&& decide);
    template <typename Decide>
    std::size_t path(Strand& strand, Memory& memory, Votes& votes, std::size_t guessed,
                     const Cumulative* model, Decide&& decide);
    void remember(Strand& strand, Memory& memory, std::size_t token);
    static std::uint32_t common_before(const Memory& memory, std::uint32_t one,
                                       std::uint32_t other);

    // Where a probability lies between the knots of a map.
    struct Place {
        explicit Place(int stretched) {
            const int scaled = stretched + mixing::kMaxStretch + 1;
            knot = scaled >> 7;
            part = scaled & 127;
        }
        std::uint32_t in(const std::uint16_t* map) const {
            return static_cast<std::uint32_t>(map[knot] * (128 - part) + map[knot + 1] * part) >> 1;
        }
        void learn(std::uint16_t* map, bool bit) const {
            std::uint16_t& nearest = map[knot + (part >= 64)];
            nearest = static_cast<std::uint16_t>(nearest + ((bit ? 65535 - nearest : -nearest) >> 6));
        }
        int knot, part;
    };

    static std::int16_t error(bool bit, std::uint32_t p) {
        const std::int32_t target = bit ? (1 << 22) - 1 : 0;
        return static_cast<std::int16_t>((target - static_cast<std::int32_t>(p)) >> 7);
    }

    static std::uint32_t refined(std::uint32_t mixed, std::uint32_t one, std::uint32_t other) {
        return std::clamp<std::uint32_t>((2 * mixed + one + other) >> 2, 1, kProbabilityOne - 1);
    }

    int mixed(std::int32_t sum) const {
        return std::clamp(sum >> mixing::kWeightBits, -mixing::kMaxStretch, mixing::kMaxStretch);
    }

    std::shared_ptr<const MixerProfile> profile_;
    std::shared_ptr<const Vocabulary> vocabulary_;
    mixing::Adaptive adaptive_;
    std::shared_ptr<Memory> memory_;  // copies have the same, until one of them changes it
    std::vector<Strand> strands_ = std::vector<Strand>(1);
    std::size_t turn_ = 0;  // whose the next token is
    bool contradicts_ = false;
    bool is_branch_ = false;
};

inline void Mixer::hash_contexts(Strand& strand) {
    const std::uint32_t above = strand.above();
    const std::uint16_t* last = memory_->before(strand.end);
    const auto at = [last](int k) { return std::uint32_t{last[-k]} + 1; };
    const auto number = static_cast<std::uint32_t>(strand.fields.size() - 1);

    std::uint32_t h = 0;
    strand.contexts[0] = 0;
    for (int k = 1; k <= 4; ++k) strand.contexts[static_cast<std::size_t>(k)] = h = hash(h, at(k));
    strand.contexts[5] = hash(hash(h, at(5)), at(6));
    strand.contexts[6] =
        hash(hash(strand.shapes_before[0], strand.shapes_before[1]), strand.field_shape);
    strand.contexts[7] = hash(strand.word, strand.word_before);
    strand.contexts[8] = hash(above, at(1));
    strand.contexts[9] = hash(above & 0xFFFFFF, hash(number, strand.field));
    strand.contexts[10] = hash(hash(strand.field, number), strand.first_field);
    strand.contexts[11] = hash(strand.line_shape, 1);
    for (std::uint32_t k = 0; k < mixing::kPlainContexts; ++k)
        strand.contexts[k] = hash(strand.contexts[k], 0x9E37 * (k + 1));
    strand.hashed = true;
}

// The others, behind a wrong guess (its token plus 1) or none (0).
inline void Mixer::hash_contexts_after(Strand& strand, std::uint32_t guessed) {
    const std::uint16_t* last = memory_->before(strand.end);
    const auto at = [last](int k) { return std::uint32_t{last[-k]} + 1; };
    const auto field = static_cast<std::uint32_t>(strand.fields.size() - 1);
    strand.contexts[12] = hash(guessed, at(1));
    strand.contexts[13] = hash(hash(guessed, field), strand.field);
    strand.contexts[14] = hash(guessed, strand.line_shape);
    strand.contexts[15] = hash(hash(guessed, at(1)), at(2));
    strand.contexts[16] = hash(guessed, strand.first_field);
    strand.contexts[17] = hash(guessed, hash(strand.word, strand.word_before));
    strand.contexts[18] = hash(hash(guessed, field), strand.first_field);
    strand.contexts[19] = hash(hash(strand.shapes_before[0], strand.field_shape), field);
    strand.contexts[20] = hash(guessed, 1);
    strand.contexts[21] = hash(hash(guessed, at(2)), at(3));
    strand.contexts[22] = hash(at(1), at(3));
    strand.contexts[23] = hash(at(2), at(3));
    for (std::uint32_t k = mixing::kPlainContexts; k < mixing::kContexts; ++k)
        strand.contexts[k] = hash(strand.contexts[k], 0x9E37 * (k + 1));
}

inline Mixer::Votes Mixer::ask(const Strand& strand, Memory& memory) {
    using namespace mixing;
    Votes votes;
    std::array<std::uint32_t, kRuns> hashes;
    for (std::size_t k = 0; k < kRuns; ++k) {
        hashes[k] = run_hash(strand, k);
        memory.foresee_run(k, hashes[k]);
    }
    for (std::size_t k = 0; k < kMatches; ++k) {
        votes.lengths[k] = length_class(strand.matches[k].length);
        votes.misses[k] = std::min<std::uint32_t>(strand.matches[k].misses, 7);
        if (strand.matches[k].at == 0 || (k == 1 && strand.matches[0].at == strand.matches[1].at)) continue;
        votes.tokens[k] = memory.token(strand.matches[k].at);
        votes.counters[k] = &adaptive_.vote_match[k][votes.lengths[k]][votes.misses[k]];
    }
    for (std::size_t k = 0; k < kRuns; ++k) {
        Run& run = memory.run(k, hashes[k]);
        votes.runs[k] = &run;
        if (run.history == 0) continue;
        votes.tokens[kMatches + k] = run.token;
        votes.counters[kMatches + k] = &adaptive_.vote_run[k][run.history];
    }
    return votes;
}

template <typename Decide>
std::size_t Mixer::token(const Cumulative* model, Decide&& decide) {
    using namespace mixing;
    Memory& memory = own();
    Strand& strand = strands_[turn_];
    if (!strand.hashed) hash_contexts(strand);
    strand.hashed = false;  // for the one behind
    Votes votes = ask(strand, memory);
    std::size_t best = kVotes;
    Counter most = 0;
    for (std::size_t k = 0; k < kVotes; ++k)
        if (votes.counters[k] && *votes.counters[k] > most) {
            most = *votes.counters[k];
            best = k;
        }

    std::size_t token;
    if (p16(most) < kGuessFrom) {
        token = path(strand, memory, votes, vocabulary_->size(), model, decide);
    } else {
        token = votes.tokens[best];
        if (!guess(votes, best, memory.before(strand.end)[-1], model, decide)) {
            const std::size_t guessed =
                std::exchange(token, path(strand, memory, votes, token, model, decide));
            contradicts_ = contradicts_ || token == guessed;
        }
    }

    for (std::size_t k = 0; k < kVotes; ++k)
        if (votes.counters[k]) count(*votes.counters[k], votes.tokens[k] == token);
    for (Run* run : votes.runs) {
        const bool same = run->history == 0 || run->token == token;
        run->history = profile_->tables.next[same][run->history];
        run->token = static_cast<std::uint16_t>(token);
    }
    remember(strand, memory, token);
    turn_ = (turn_ + 1) % strands_.size();
    return token;
}

// Whether the token is that of the vote `best`; last: the one before it.
template <typename Decide>
bool Mixer::guess(const Votes& votes, std::size_t best, std::uint32_t last, const Cumulative* model,
                  Decide&& decide) {
    using namespace mixing;
    const std::size_t family = model != nullptr;
    const std::size_t guessed = votes.tokens[best];
    alignas(16) std::int16_t inputs[kGuessInputs] = {};
    std::array<Counter*, kVotes> maps{};
    std::size_t agree = 0, against = 0, voters = 0;
    for (std::size_t k = 0; k < kVotes; ++k) {
        if (!votes.counters[k]) continue;
        const bool same = votes.tokens[k] == guessed;
        (same ? agree : against) += 1;
        if (k < kMatches) {
            maps[k] = &adaptive_.guess_match[k][same][votes.lengths[k]][votes.misses[k]];
        } else {
            const std::size_t run = k - kMatches;
            maps[k] = &adaptive_.guess_run[run][same][votes.runs[run]->history];
            if (same && run < kRunBitsOfSet) voters |= std::size_t{1} << run;
        }
        inputs[k] = static_cast<std::int16_t>(stretch(p16(*maps[k])));
    }
    inputs[kConstantInput] = kConstant;
    if (model) {
        const std::uint64_t ratio =
            (((*model)[guessed + 1] - (*model)[guessed]) << 16) / (*model)[vocabulary_->size()];
        inputs[kGuessModelInput] = static_cast<std::int16_t>(
            stretch(static_cast<std::uint32_t>(std::min<std::uint64_t>(ratio, 65535))));
    }

    const bool matches = votes.counters[0] && votes.tokens[0] == guessed;
    const std::array<std::int16_t*, kSets> weights{
        adaptive_.by_vote[family][best][votes.counters[0] ? votes.lengths[0] : 0],
        adaptive_.by_count[family][std::min<std::size_t>(agree, 11)][std::min<std::size_t>(against, 11)],
        adaptive_.by_voters[family][matches][voters],
    };
    std::array<std::uint32_t, kSets> mixed_p;
    std::int32_t sum = 0;
    for (std::size_t k = 0; k < kSets; ++k) {
        const int stretched = mixed(dot<kGuessInputs>(weights[k], inputs));
        mixed_p[k] = squash(stretched);
        sum += stretched;
    }
    const int stretched = sum * 21845 >> 16;  // their mean
    const Place place(stretched);
    std::uint16_t* by_guess =
        adaptive_.by_guess[hash(static_cast<std::uint32_t>(guessed), last) & 1023];
    std::uint16_t* by_against = adaptive_.by_against[best][std::min<std::size_t>(against, 15)];

    const bool hit = decide(guessed, refined(squash(stretched), place.in(by_guess),
                                             place.in(by_against)), true);

    for (std::size_t k = 0; k < kSets; ++k)
        learn<kGuessInputs>(weights[k], inputs, error(hit, mixed_p[k]));
    place.learn(by_guess, hit);
    place.learn(by_against, hit);
    for (Counter* map : maps)
        if (map) count(*map, hit);
    return hit;
}

// The token, node by node. guessed: wrongly; the vocabulary's size if nothing was guessed.
template <typename Decide>
std::size_t Mixer::path(Strand& strand, Memory& memory, Votes& votes, std::size_t guessed,
                        const Cumulative* model, Decide&& decide) {
    using namespace mixing;
    const bool was_guess = guessed < vocabulary_->size();
    hash_contexts_after(strand, was_guess ? static_cast<std::uint32_t>(guessed) + 1 : 0);
    std::array<bool, kVotes> holds;
    for (std::size_t k = 0; k < kVotes; ++k)
        holds[k] = votes.counters[k] && votes.tokens[k] != guessed;
    bool* match_holds = holds.data();
    bool* run_holds = holds.data() + kMatches;
    const std::uint16_t* expected = votes.tokens.data();
    const std::uint16_t* run_token = votes.tokens.data() + kMatches;
    // Cumulative frequencies, without that of the wrong guess.
    const std::uint64_t left_out =
        model && was_guess ? (*model)[guessed + 1] - (*model)[guessed] : 0;
    const auto cumulative = [&](std::size_t at) {
        return (*model)[at] - (at > guessed ? left_out : 0);
    };

    const std::size_t family = model != nullptr;
    const std::uint32_t last = memory.before(strand.end)[-1];
    std::size_t low = 0, high = vocabulary_->size();
    std::uint64_t at_low = 0, at_high = model ? cumulative(high) : 0;
    std::array<Slot*, kContexts> slots;
    std::array<std::uint32_t, kContexts> hashes;
    const auto ask_for_slots = [&](std::size_t node) {
        const std::uint32_t place = place_of(node);
        for (std::size_t i = 0; i < kContexts; ++i) {
            hashes[i] = hash(strand.contexts[i], place);
            memory.foresee_slot(hashes[i]);
        }
    };
    ask_for_slots(1);
    std::size_t node = 1;     // of the path, the bits so far behind a 1
    std::size_t in_slot = 1;  // likewise, within three levels
    std::size_t order = 0;
    alignas(16) std::int16_t inputs[kInputs];

    for (int level = 0; high - low > 1; ++level) {
        const std::size_t group = std::min<std::size_t>(level / kLevelsOfSlot, kGroups - 1);
        if (level % kLevelsOfSlot == 0) {
            in_slot = 1;
            for (std::size_t i = 0; i < kContexts; ++i)
                slots[i] = &memory.slot(hashes[i], profile_->tables.seen);
            if (level == 0)
                for (std::size_t i = 1; i <= 5; ++i)
                    if (slots[i]->history[0] != 0) order = i;
        }
        const std::size_t middle = (low + high) / 2;
        const std::size_t matched =
            match_holds[0] ? std::min<std::size_t>(static_cast<std::size_t>(votes.lengths[0]) + 1, 15) : 0;
        std::uint16_t* by_node = adaptive_.by_node[node & 2047];
        std::uint16_t* by_context =
            match_holds[0]
                ? adaptive_.by_expected[matched][expected[0] >= middle][std::min(level, 15)]
                : adaptive_.by_token[hash(last, static_cast<std::uint32_t>(node)) & 1023];
        std::int16_t* by_match = adaptive_.by_match[family][matched][group][match_holds[1]];
        prefetch_row(by_node);
        prefetch_row(by_context);
        prefetch_row(by_match);

        // Inputs.
        std::array<Counter*, kContexts> maps;
        int known = 0;
        for (std::size_t i = 0; i < kContexts; ++i) {
            const std::uint8_t history = slots[i]->history[in_slot - 1];
            Counter& map = adaptive_.history[i][group][history];
            maps[i] = history ? &map : nullptr;
            const std::uint32_t p = p16(map);  // of history 0 it is 1/2, which says 0 twice
            inputs[i] = static_cast<std::int16_t>(stretch(p));
            inputs[kContexts + i] = static_cast<std::int16_t>((static_cast<int>(p) - 32768) >> 7);
            known += history != 0;
        }
        std::array<Counter*, kMatches> match_maps{};
        for (std::size_t k = 0; k < kMatches; ++k) {
            inputs[kFirstMatch + k] = 0;
            if (!match_holds[k]) continue;
            match_maps[k] = &adaptive_.match[k][votes.lengths[k]][votes.misses[k]];
            const int s = stretch(p16(*match_maps[k]));
            inputs[kFirstMatch + k] = static_cast<std::int16_t>(expected[k] >= middle ? s : -s);
        }
        std::array<Counter*, kRunsOfNodes> run_maps{};
        for (std::size_t k = 0; k < kRunsOfNodes; ++k) {
            inputs[kFirstRun + k] = 0;
            if (!run_holds[k]) continue;
            run_maps[k] = &adaptive_.run[k][level > 3][votes.runs[k]->history];
            const int s = stretch(p16(*run_maps[k]));
            inputs[kFirstRun + k] = static_cast<std::int16_t>(run_token[k] >= middle ? s : -s);
        }
        std::uint64_t at_middle = 0;
        int said = 0;
        if (model) {
            at_middle = cumulative(middle);
            const std::uint64_t ratio =
                ((at_high - at_middle) << kProbabilityBits) / (at_high - at_low);
            said = stretch(static_cast<std::uint32_t>(
                std::clamp<std::uint64_t>(ratio >> (kProbabilityBits - 16), 0, 65535)));
        }
        inputs[kModelInput] = static_cast<std::int16_t>(said);

        // Mixture: three weight sets, then one of their results.
        const auto sure = static_cast<std::size_t>(std::min(std::abs(said) / 96, 7));
        std::array<std::int16_t*, kSets> weights{
            by_match,
            adaptive_.by_order[family][order][sure][group],
            adaptive_.by_level[std::min(level, 15)][known][family],
        };
        std::array<int, kSets> each;
        std::array<std::uint32_t, kSets> mixed_p;
        std::int16_t* final =
            adaptive_.final[family][std::min(level, 15)][2 * match_holds[0] + (order > 2)];
        std::int32_t sum = 0;
        for (std::size_t k = 0; k < kSets; ++k) {
            each[k] = mixed(dot<kInputs>(weights[k], inputs));
            mixed_p[k] = squash(each[k]);
            sum += final[k] * each[k];
        }
        const int stretched = mixed(sum);
        const std::uint32_t p_mixed = squash(stretched);

        // Refinement.
        const Place place(stretched);
        const bool bit = decide(middle, refined(p_mixed, place.in(by_node), place.in(by_context)), false);
        const std::size_t at_level = std::exchange(in_slot, in_slot << 1 | bit) - 1;
        node = node << 1 | bit;
        if (bit) {
            low = middle;
            at_low = at_middle;
        } else {
            high = middle;
            at_high = at_middle;
        }
        // While what was learned is written, what comes next is fetched.
        if ((level + 1) % kLevelsOfSlot == 0 && high - low > 1) ask_for_slots(node);

        // Learning.
        for (std::size_t k = 0; k < kSets; ++k)
            learn<kInputs>(weights[k], inputs, error(bit, mixed_p[k]));
        const std::int32_t final_error = error(bit, p_mixed);
        for (std::size_t k = 0; k < kSets; ++k)
            final[k] = static_cast<std::int16_t>(std::clamp<std::int32_t>(
                final[k] + ((each[k] * final_error + (1 << 16)) >> 17), -32768, 32767));
        place.learn(by_node, bit);
        place.learn(by_context, bit);
        for (std::size_t i = 0; i < kContexts; ++i) {
            if (maps[i]) count(*maps[i], bit);
            std::uint8_t& history = slots[i]->history[at_level];
            history = profile_->tables.next[bit][history];
        }
        for (std::size_t k = 0; k < kMatches; ++k) {
            if (!match_maps[k]) continue;
            const bool right = (expected[k] >= middle) == bit;
            count(*match_maps[k], right);
            match_holds[k] = right;
        }
        for (std::size_t k = 0; k < kRunsOfNodes; ++k) {
            if (!run_maps[k]) continue;
            const bool right = (run_token[k] >= middle) == bit;
            count(*run_maps[k], right);
            run_holds[k] = right;
        }
    }

    return low;
}

inline void Mixer::remember(Strand& strand, Memory& memory, std::size_t token) {
    using namespace mixing;
    if (strand.end == memory.end()) memory.end_at(strand.end + 1);
    memory.put(strand.end++, static_cast<std::uint16_t>(token));
    for (const char c : vocabulary_->spelling(token)) strand.take(static_cast<std::uint8_t>(c));

    const auto end = static_cast<std::uint32_t>(strand.end);
    for (std::size_t k = 0; k < kMatches; ++k) {
        Match& match = strand.matches[k];
        const auto needed = static_cast<std::uint32_t>(kMinMatch[k]);
        std::uint32_t h = static_cast<std::uint32_t>(k);
        for (std::uint32_t i = 1; i <= needed; ++i) h = hash(h, memory.token(end - i));
        std::uint32_t& place = memory.place(k, h);
        if (match.at != 0) {
            if (memory.token(match.at) == token) {
                ++match.length;
                if (match.length >= 16) match.misses = 0;
            } else {
                match.length = 0;  // it may go on behind what differs
                ++match.misses;
            }
            ++match.at;
        }
        if (match.length == 0) {
            std::uint32_t found = place, common = common_before(memory, found, end);
            if (common < needed) {
                const std::uint32_t other = memory.place_behind(k, h);
                const std::uint32_t more = common_before(memory, other, end);
                if (more > common) found = other, common = more;
            }
            if (common >= needed || (common > 0 && match.at == 0)) {
                match.at = found;
                match.length = common;
                match.misses = std::min<std::uint32_t>(match.misses, 3);
            } else if (match.misses > 8) {
                match = Match{};
            }
        }
        place = end;
    }
}

// How many tokens before these two are the same.
inline std::uint32_t Mixer::common_before(const Memory& memory, std::uint32_t one,
                                          std::uint32_t other) {
    std::uint32_t common = 0;
    if (one == 0) return common;
    while (common < kLongest && common + mixing::kBefore < std::min(one, other) &&
           memory.token(one - 1 - common) == memory.token(other - 1 - common))
        ++common;
    return common;
}

}  // namespace lmfs
