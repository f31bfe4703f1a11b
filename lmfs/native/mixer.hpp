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
// Beside this: mixer_profile (sizes, tables, what is learned before), mixer_learning (the arithmetic,
// units), mixer_text and mixer_strand (contexts and matches), mixer_memory (what is remembered).

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
#include <string_view>
#include <utility>
#include <vector>

#include "frequencies.hpp"
#include "mixer_learning.hpp"
#include "mixer_memory.hpp"
#include "mixer_profile.hpp"
#include "mixer_strand.hpp"
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
        if (!strand.hashed) strand.hash_contexts(*memory_);
        for (std::size_t k = 0; k < mixing::kRuns; ++k) memory_->foresee_run(k, strand.run_hash(k));
        for (std::size_t i = 0; i < mixing::kPlainContexts; ++i)
            memory_->foresee_slot(strand.slot_hash(i, 1));
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
    using Strand = mixing::Strand;

    // To be changed: nobody else's any more.
    Memory& own() {
        if (memory_.use_count() != 1) memory_ = std::make_shared<Memory>(*memory_);
        // Who had it as well has read what they read of it.
        std::atomic_thread_fence(std::memory_order_acquire);
        return *memory_;
    }

    // What expects a token, before it is known.
    struct Votes {
        std::array<Run*, mixing::kRuns> runs;
        std::array<mixing::Counter*, mixing::kVotes> counters{};  // nullptr: no vote
        std::array<std::uint16_t, mixing::kVotes> tokens{};
        std::array<int, mixing::kMatches> lengths{};
        std::array<std::size_t, mixing::kMatches> misses{};
    };

    Votes ask(const Strand& strand, Memory& memory);
    template <typename Decide>
    bool guess(const Votes& votes, std::size_t best, std::uint32_t last, const Cumulative* model,
               Decide&& decide);
    template <typename Decide>
    std::size_t path(Strand& strand, Memory& memory, Votes& votes, std::size_t guessed,
                     const Cumulative* model, Decide&& decide);

    std::shared_ptr<const MixerProfile> profile_;
    std::shared_ptr<const Vocabulary> vocabulary_;
    mixing::Adaptive adaptive_;
    std::shared_ptr<Memory> memory_;  // copies have the same, until one of them changes it
    std::vector<Strand> strands_ = std::vector<Strand>(1);
    std::size_t turn_ = 0;  // whose the next token is
    bool contradicts_ = false;
    bool is_branch_ = false;
};

inline Mixer::Votes Mixer::ask(const Strand& strand, Memory& memory) {
    using namespace mixing;
    Votes votes;
    std::array<std::uint32_t, kRuns> hashes;
    for (std::size_t k = 0; k < kRuns; ++k) {
        hashes[k] = strand.run_hash(k);
        memory.foresee_run(k, hashes[k]);
    }
    for (std::size_t k = 0; k < kMatches; ++k) {
        votes.lengths[k] = strand.matches[k].length_class();
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
    const Tables& tables = profile_->tables;
    Memory& memory = own();
    Strand& strand = strands_[turn_];
    if (!strand.hashed) strand.hash_contexts(memory);
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
        if (votes.counters[k]) count(tables, *votes.counters[k], votes.tokens[k] == token);
    for (Run* run : votes.runs) {
        const bool same = run->history == 0 || run->token == token;
        run->history = tables.next[same][run->history];
        run->token = static_cast<std::uint16_t>(token);
    }
    strand.take(memory, token, vocabulary_->spelling(token));
    turn_ = (turn_ + 1) % strands_.size();
    return token;
}

// Whether the token is that of the vote `best`; last: the one before it.
template <typename Decide>
bool Mixer::guess(const Votes& votes, std::size_t best, std::uint32_t last, const Cumulative* model,
                  Decide&& decide) {
    using namespace mixing;
    const Tables& tables = profile_->tables;
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
        inputs[k] = static_cast<std::int16_t>(stretch(tables, p16(*maps[k])));
    }
    inputs[kConstantInput] = kConstant;
    if (model) {
        const std::uint64_t ratio =
            (((*model)[guessed + 1] - (*model)[guessed]) << 16) / (*model)[vocabulary_->size()];
        inputs[kGuessModelInput] = static_cast<std::int16_t>(
            stretch(tables, static_cast<std::uint32_t>(std::min<std::uint64_t>(ratio, 65535))));
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
        mixed_p[k] = squash(tables, stretched);
        sum += stretched;
    }
    const int stretched = sum * 21845 >> 16;  // their mean
    const Place place(stretched);
    std::uint16_t* by_guess =
        adaptive_.by_guess[hash(static_cast<std::uint32_t>(guessed), last) & 1023];
    std::uint16_t* by_against = adaptive_.by_against[best][std::min<std::size_t>(against, 15)];

    const bool hit = decide(guessed, refined(squash(tables, stretched), place.in(by_guess),
                                             place.in(by_against)), true);

    for (std::size_t k = 0; k < kSets; ++k)
        learn<kGuessInputs>(weights[k], inputs, error(hit, mixed_p[k]));
    place.learn(by_guess, hit);
    place.learn(by_against, hit);
    for (Counter* map : maps)
        if (map) count(tables, *map, hit);
    return hit;
}

// The token, node by node. guessed: wrongly; the vocabulary's size if nothing was guessed.
template <typename Decide>
std::size_t Mixer::path(Strand& strand, Memory& memory, Votes& votes, std::size_t guessed,
                        const Cumulative* model, Decide&& decide) {
    using namespace mixing;
    const Tables& tables = profile_->tables;
    const bool was_guess = guessed < vocabulary_->size();
    strand.hash_contexts_after(memory, was_guess ? static_cast<std::uint32_t>(guessed) + 1 : 0);
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
        for (std::size_t i = 0; i < kContexts; ++i) {
            hashes[i] = strand.slot_hash(i, node);
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
                slots[i] = &memory.slot(hashes[i], tables.seen);
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
            inputs[i] = static_cast<std::int16_t>(stretch(tables, p));
            inputs[kContexts + i] = static_cast<std::int16_t>((static_cast<int>(p) - 32768) >> 7);
            known += history != 0;
        }
        std::array<Counter*, kMatches> match_maps{};
        for (std::size_t k = 0; k < kMatches; ++k) {
            inputs[kFirstMatch + k] = 0;
            if (!match_holds[k]) continue;
            match_maps[k] = &adaptive_.match[k][votes.lengths[k]][votes.misses[k]];
            const int s = stretch(tables, p16(*match_maps[k]));
            inputs[kFirstMatch + k] = static_cast<std::int16_t>(expected[k] >= middle ? s : -s);
        }
        std::array<Counter*, kRunsOfNodes> run_maps{};
        for (std::size_t k = 0; k < kRunsOfNodes; ++k) {
            inputs[kFirstRun + k] = 0;
            if (!run_holds[k]) continue;
            run_maps[k] = &adaptive_.run[k][level > 3][votes.runs[k]->history];
            const int s = stretch(tables, p16(*run_maps[k]));
            inputs[kFirstRun + k] = static_cast<std::int16_t>(run_token[k] >= middle ? s : -s);
        }
        std::uint64_t at_middle = 0;
        int said = 0;
        if (model) {
            at_middle = cumulative(middle);
            const std::uint64_t ratio =
                ((at_high - at_middle) << kProbabilityBits) / (at_high - at_low);
            said = stretch(tables, static_cast<std::uint32_t>(
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
            mixed_p[k] = squash(tables, each[k]);
            sum += final[k] * each[k];
        }
        const int stretched = mixed(sum);
        const std::uint32_t p_mixed = squash(tables, stretched);

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
            if (maps[i]) count(tables, *maps[i], bit);
            std::uint8_t& history = slots[i]->history[at_level];
            history = tables.next[bit][history];
        }
        for (std::size_t k = 0; k < kMatches; ++k) {
            if (!match_maps[k]) continue;
            const bool right = (expected[k] >= middle) == bit;
            count(tables, *match_maps[k], right);
            match_holds[k] = right;
        }
        for (std::size_t k = 0; k < kRunsOfNodes; ++k) {
            if (!run_maps[k]) continue;
            const bool right = (run_token[k] >= middle) == bit;
            count(tables, *run_maps[k], right);
            run_holds[k] = right;
        }
    }

    return low;
}

}  // namespace lmfs
