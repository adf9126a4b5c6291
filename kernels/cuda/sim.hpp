// Host stand-in for a CUDA block: the same kernel source, run by fibres on one CPU thread.
//
// Built to find mistakes, not to be fast:
//   - each warp runs as far as the block barrier before the next warp starts, in ascending or (SIM_REVERSE=1) descending
//     order, blocks likewise, so that a missing block_sync() gives wrong results every time;
//   - cp_async16 poisons its destination and delivers only at the matching cp_wait; dynamic shared memory begins poisoned;
//   - a barrier or collective that some thread never reaches aborts, and so do lanes that meet in different collectives.
// Compiled with -fsanitize=address,undefined (CQC_SIM_SANITIZE=1, docs/cuda.md) it also finds accesses beyond an operand's memory or
// beyond the shared memory that a launch asked for.
// It cannot judge the PTX text, bank conflicts, speed, or weak memory ordering.
#pragma once

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <ucontext.h>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Exports `cqc_sim_<name>`, which runs the kernel over a grid: {blocks along x, blocks along y, bytes of shared memory}.
#define CQ_KERNEL(name, threads, Args)                                        \
  static void name(const Args& p);                                            \
  extern "C" void cqc_sim_##name(const void* args, const u32* grid) {         \
    const Args& p = *(const Args*)args;                                       \
    sim::launch(grid[0], grid[1], threads, grid[2], [&] { name(p); });        \
  }                                                                           \
  static void name(const Args& p)
#define CQ_SHARED static  // one block at a time, so one copy is enough
#define CQ_FN inline

namespace sim {

constexpr int kWarp = 32;
// What a block of sm_86 can have at most.
constexpr u32 kMaxShared = 99 << 10;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "cuda simulator: %s\n", what);
  std::abort();
}

struct PendingCopy {
  void* dst;
  u8 bytes[16];
  int group;
};

// What a lane shows to its warp, for this collective and the next.
struct Shown {
  int collective;
  u32 regs[6];
  const void* row;
};

struct Lane {
  Shown shown[2];
  int turn = 0;
  std::vector<PendingCopy> copies;
  int group = 0;  // cp.async group now being filled
};

// What the address sanitizer has to be told of stacks and of shared memory; nothing without it.
#if defined(__SANITIZE_ADDRESS__)
inline const void* thread_stack;
inline size_t thread_stack_bytes;
inline void leave(void** kept, const void* stack, size_t bytes) { __sanitizer_start_switch_fiber(kept, stack, bytes); }
inline void arrive(void* kept) { __sanitizer_finish_switch_fiber(kept, nullptr, nullptr); }
inline void arrive_from_thread(void* kept) { __sanitizer_finish_switch_fiber(kept, &thread_stack, &thread_stack_bytes); }
inline void leave_to_thread(void** kept) { leave(kept, thread_stack, thread_stack_bytes); }
// A fibre that ended has left its frames behind.
inline void clear(const void* stack, size_t bytes) { __asan_unpoison_memory_region(stack, bytes); }
inline void forbid(const void* memory, size_t bytes) { __asan_poison_memory_region(memory, bytes); }
inline void allow(const void* memory, size_t bytes) { __asan_unpoison_memory_region(memory, bytes); }
#else
inline void leave(void**, const void*, size_t) {}
inline void arrive(void*) {}
inline void arrive_from_thread(void*) {}
inline void leave_to_thread(void**) {}
inline void clear(const void*, size_t) {}
inline void forbid(const void*, size_t) {}
inline void allow(const void*, size_t) {}
#endif

enum class Wait { kNone, kWarp, kBlock, kDone };

struct Fibre {
  ucontext_t context;
  jmp_buf jump;
  void* kept = nullptr;  // the sanitizer's
  bool started = false;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Wait wait = Wait::kNone;
  static constexpr size_t kStack = 128 << 10;
};

inline std::vector<std::unique_ptr<Fibre>> fibres;
inline std::vector<Lane> lanes;
inline jmp_buf scheduler;
inline int current, x, y;
inline const std::function<void()>* body;
alignas(128) inline u8 shared[kMaxShared];

// Neither side of a switch returns through a frame that the other has left: each jumps within its own stack.
__attribute__((noinline)) inline void park(Wait why) {
  Fibre& f = *fibres[current];
  f.wait = why;
  leave_to_thread(why == Wait::kDone ? nullptr : &f.kept);
  if (_setjmp(f.jump) == 0) _longjmp(scheduler, 1);
  arrive_from_thread(f.kept);
}
inline void enter() {
  arrive_from_thread(nullptr);
  (*body)();
  park(Wait::kDone);
}
__attribute__((noinline)) inline void resume(int t) {
  current = t;
  Fibre& f = *fibres[t];
  void* kept;
  leave(&kept, f.stack.get(), Fibre::kStack);
  if (_setjmp(scheduler) != 0) {
    arrive(kept);
    return;
  }
  if (f.started) _longjmp(f.jump, 1);
  f.started = true;
  setcontext(&f.context);
}

// Runs one warp until every lane is done or at the block barrier. False if nothing could run.
inline bool run_warp(int first) {
  bool moved = false;
  for (;;) {
    bool ran = false;
    int at_warp = 0;
    for (int t = first; t < first + kWarp; ++t) {
      if (fibres[t]->wait == Wait::kNone) {
        resume(t);
        ran = moved = true;
      }
      at_warp += fibres[t]->wait == Wait::kWarp;
    }
    if (at_warp == kWarp) {
      for (int t = first; t < first + kWarp; ++t) fibres[t]->wait = Wait::kNone;
    } else if (!ran) {
      return moved;
    }
  }
}

inline bool is_reverse() {
  const char* set = std::getenv("SIM_REVERSE");
  return set && *set && *set != '0';
}

inline void run_block(int threads, bool reverse) {
  while ((int)fibres.size() < threads) fibres.push_back(std::make_unique<Fibre>());
  lanes.assign(threads, Lane{});
  for (int t = 0; t < threads; ++t) {
    Fibre& f = *fibres[t];
    getcontext(&f.context);
    clear(f.stack.get(), Fibre::kStack);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = Fibre::kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, enter, 0);
    f.started = false;
    f.wait = Wait::kNone;
  }
  const int warps = threads / kWarp;
  for (;;) {
    bool moved = false;
    for (int w = 0; w < warps; ++w) moved |= run_warp((reverse ? warps - 1 - w : w) * kWarp);
    int at_block = 0, done = 0;
    for (int t = 0; t < threads; ++t) {
      at_block += fibres[t]->wait == Wait::kBlock;
      done += fibres[t]->wait == Wait::kDone;
    }
    if (done == threads) break;
    if (at_block == threads) {
      for (int t = 0; t < threads; ++t) fibres[t]->wait = Wait::kNone;
    } else if (!moved) {
      fail("a barrier or warp collective was not reached by every thread");
    }
  }
  for (const Lane& lane : lanes) {
    if (!lane.copies.empty()) fail("a block ended with copies to shared memory under way");
  }
}

// Runs the kernel once for every thread of every block.
inline void launch(u32 grid_x, u32 grid_y, int threads, u32 shared_bytes, const std::function<void()>& kernel) {
  if (threads % kWarp != 0) fail("threads must be a multiple of 32");
  if (shared_bytes > kMaxShared) fail("more shared memory than a block can have");
  body = &kernel;
  const bool reverse = is_reverse();
  for (u32 i = 0; i < grid_x * grid_y; ++i) {
    const u32 block = reverse ? grid_x * grid_y - 1 - i : i;
    x = block % grid_x, y = block / grid_x;
    std::memset(shared, 0xcd, shared_bytes);
    forbid(shared + shared_bytes, kMaxShared - shared_bytes);
    run_block(threads, reverse);
    allow(shared, kMaxShared);
  }
}

inline Lane& lane() { return lanes[current]; }

// Meets the other lanes of the warp: returns which of the two things shown is this collective's.
inline int meet(int collective) {
  Lane& me = lane();
  const int turn = me.turn++ % 2;
  me.shown[turn].collective = collective;
  park(Wait::kWarp);
  if (lanes[current ^ 1].shown[turn].collective != collective) fail("lanes of a warp are in different collectives");
  return turn;
}
inline Shown& showing() { return lane().shown[lane().turn % 2]; }
inline const Shown& peer(int l, int turn) { return lanes[current / kWarp * kWarp + l].shown[turn]; }

inline float widen(u16 h) {
  const u32 sign = (u32)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
  if (exponent == 0) {
    const float tiny = std::ldexp((float)mantissa, -24);
    return sign ? -tiny : tiny;
  }
  const u32 bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline const std::vector<float>& halves() {
  static const std::vector<float> table = [] {
    std::vector<float> all(1 << 16);
    for (u32 h = 0; h < all.size(); ++h) all[h] = widen((u16)h);
    return all;
  }();
  return table;
}

enum { kMmaBytes, kMmaHalves, kLoad, kLoadTransposed, kShuffle };

// The operands of an mma as lanes hold them: word `half` of row `row` of a in quarter `q`, and of column `col` of b.
inline u32 word_a(int turn, int row, int q, int half) { return peer(row % 8 * 4 + q, turn).regs[row / 8 + half * 2]; }
inline u32 word_b(int turn, int col, int q, int half) { return peer(col * 4 + q, turn).regs[4 + half]; }

template <class Acc, class Dot>
void mma(int collective, Acc (&d)[4], const u32 (&a)[4], const u32 (&b)[2], Dot dot) {
  std::memcpy(showing().regs, a, sizeof a);
  std::memcpy(showing().regs + 4, b, sizeof b);
  const int turn = meet(collective);
  const int group = current % 32 / 4, quad = current % 4;
  for (int e = 0; e < 4; ++e) {
    const int row = group + e / 2 * 8, col = quad * 2 + e % 2;
    for (int half = 0; half < 2; ++half)
      for (int q = 0; q < 4; ++q) d[e] += dot(word_a(turn, row, q, half), word_b(turn, col, q, half));
  }
}

inline void load(int collective, u32 (&r)[4], const void* row, bool transposed) {
  if ((uintptr_t)row % 16 != 0) fail("ldmatrix row is not 16-byte aligned");
  showing().row = row;
  const int turn = meet(collective), l = current % 32;
  for (int tile = 0; tile < 4; ++tile) {
    auto at = [&](int row, int col) { return ((const u16*)peer(tile * 8 + row, turn).row)[col]; };
    const int i = l / 4, j = l % 4 * 2;
    r[tile] = transposed ? at(j, i) | (u32)at(j + 1, i) << 16 : at(i, j) | (u32)at(i, j + 1) << 16;
  }
}

}  // namespace sim

inline int tid() { return sim::current; }
inline int block_x() { return sim::x; }
inline int block_y() { return sim::y; }
inline void block_sync() { sim::park(sim::Wait::kBlock); }
inline int round_even(float x) { return (int)std::nearbyint(x); }
inline float fast_exp(float x) { return std::exp(x); }
inline float fast_div(float a, float b) { return a / b; }
inline float times(float a, float b) { return a * b; }
inline float plus(float a, float b) { return a + b; }
inline float reciprocal(float x) { return 1.0f / x; }
inline float inverse_sqrt(float x) { return 1.0f / std::sqrt(x); }
inline float infinity() { return std::numeric_limits<float>::infinity(); }
inline u8* dynamic_shared() { return sim::shared; }

inline void mma_u8s8(int (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  sim::mma(sim::kMmaBytes, d, a, b, [](u32 a, u32 b) {
    int sum = 0;
    for (int i = 0; i < 32; i += 8) sum += (int)(u8)(a >> i) * (int)(i8)(b >> i);
    return sum;
  });
}
inline void mma_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  const float* of = sim::halves().data();
  sim::mma(sim::kMmaHalves, d, a, b, [&](u32 a, u32 b) {
    return of[a & 0xffff] * of[b & 0xffff] + of[a >> 16] * of[b >> 16];
  });
}
inline void ldmatrix_x4(u32 (&r)[4], const void* row) { sim::load(sim::kLoad, r, row, false); }
inline void ldmatrix_x4_trans(u32 (&r)[4], const void* row) { sim::load(sim::kLoadTransposed, r, row, true); }

inline void cp_async16(void* dst, const void* src, bool valid) {
  const bool aligned = (uintptr_t)dst % 16 == 0 && (!valid || (uintptr_t)src % 16 == 0);
  if (!aligned) sim::fail("cp_async16 needs 16-byte aligned addresses");
  sim::PendingCopy copy{dst, {}, sim::lane().group};
  if (valid) std::memcpy(copy.bytes, src, 16);
  std::memset(dst, 0x55, 16);
  sim::lane().copies.push_back(copy);
}
inline void cp_commit() { sim::lane().group += 1; }
template <int pending>
void cp_wait() {
  sim::Lane& me = sim::lane();
  std::erase_if(me.copies, [&](const sim::PendingCopy& c) {
    if (c.group >= me.group - pending) return false;
    std::memcpy(c.dst, c.bytes, 16);
    return true;
  });
}

inline void copy16(void* dst, const void* src) {
  if (((uintptr_t)dst | (uintptr_t)src) % 16 != 0) sim::fail("copy16 needs 16-byte aligned addresses");
  std::memcpy(dst, src, 16);
}
struct Wide {
  u32 words[4];
};
inline Wide load16(const void* from) {
  if ((uintptr_t)from % 16 != 0) sim::fail("load16 needs a 16-byte aligned address");
  Wide v;
  std::memcpy(v.words, from, 16);
  return v;
}
inline void store16(void* to, const Wide& v) {
  if ((uintptr_t)to % 16 != 0) sim::fail("store16 needs a 16-byte aligned address");
  std::memcpy(to, v.words, 16);
}
inline void store8(void* to, u32 low, u32 high) {
  if ((uintptr_t)to % 8 != 0) sim::fail("store8 needs an 8-byte aligned address");
  std::memcpy(to, &low, 4);
  std::memcpy((u8*)to + 4, &high, 4);
}
inline void fill16(void* dst, u32 word) {
  if ((uintptr_t)dst % 16 != 0) sim::fail("fill16 needs a 16-byte aligned address");
  for (int i = 0; i < 4; ++i) std::memcpy((u8*)dst + 4 * i, &word, 4);
}

inline float shfl_xor(float x, int mask) {
  std::memcpy(sim::showing().regs, &x, 4);
  const int turn = sim::meet(sim::kShuffle);
  float other;
  std::memcpy(&other, sim::peer(sim::current % 32 ^ mask, turn).regs, 4);
  return other;
}

inline u32 float_bits(float x) {
  u32 bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float bits_float(u32 x) {
  float value;
  std::memcpy(&value, &x, 4);
  return value;
}
inline float from_f16(u16 h) { return sim::halves()[h]; }
// Round to nearest even, beyond the range to infinity, as cvt.rn does.
inline u16 to_f16(float x) {
  const u32 bits = float_bits(x);
  const u16 sign = bits >> 16 & 0x8000;
  const float size = std::fabs(x);
  if (std::isnan(x)) return 0x7fff;
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size < 0x1p-14f) return sign | (u16)std::nearbyint(size * 0x1p24f);  // subnormal, or the smallest normal one
  const int exponent = (bits >> 23 & 255) - 127;
  const u32 rounded = (u32)std::nearbyint(std::ldexp(size, 10 - exponent));  // 1024 to 2048
  return sign | (u16)(((exponent + 14) << 10) + rounded);
}
inline u32 pack_f16(float low, float high) { return to_f16(low) | (u32)to_f16(high) << 16; }
