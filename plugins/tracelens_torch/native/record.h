// The ring record and the lock-free writer. Mirrors src/tracelens/storage/format.py, field by field.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <unistd.h>

namespace tracelens {

constexpr int64_t kNoId = -1;
constexpr int kSlotBits = 4;
constexpr int kMaxSlot = (1 << kSlotBits) - 1;

enum Kind : uint8_t { kOp = 0, kStat = 1, kInputs = 2 };
enum Phase : uint8_t { kOther = 0, kData = 1, kForward = 2, kBackward = 3, kOptimizer = 4 };
enum OpFlag : uint16_t {
  kHit = 1,
  kChecked = 2,
  kView = 4,
  kInplace = 8,
  kGarbage = 16,
  kConstant = 32,
  kHarmless = 64,
  kComposite = 128,
  kInexactSource = 256,
  kCompiled = 512,
  kReplayed = 1024,
  kUnseenInputs = 2048,
};
enum TensorFlag : uint16_t { kParameter = 1, kSampled = 2, kOverwritten = 4 };

#pragma pack(push, 1)
struct Record {
  uint8_t kind, phase;
  uint16_t flags;
  int32_t tid, site_id, layout_id;
  int64_t op_id, step, parent_id, fwd_op_id, start_ns, duration_ns;
  int64_t in_ids[4];
  uint8_t n_in, n_out, stat_level, reserved;
  float vmin, vmax, mean, std, l2;
  int64_t numel, nan, posinf, neginf, zero, value_id, seq;
};
#pragma pack(pop)
static_assert(sizeof(Record) == 176, "Record must match storage.format.RECORD");

inline Record blank_record() {
  Record r;
  std::memset(&r, 0, sizeof(r));
  r.op_id = r.parent_id = r.fwd_op_id = r.duration_ns = r.value_id = r.zero = kNoId;
  for (auto& id : r.in_ids) id = kNoId;
  return r;
}

inline int64_t value_of(int64_t op_id, int64_t slot) {
  return op_id < 0 ? kNoId : (op_id << kSlotBits) | (slot > kMaxSlot ? kMaxSlot : slot);
}

inline int64_t monotonic_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

// One ring shared by every thread of the process, Python's writes included.
class Ring {
 public:
  void open(uintptr_t records, uint64_t capacity, uintptr_t head, uintptr_t sealed,
            uintptr_t op_ids, bool stream, bool block) {
    records_ = reinterpret_cast<char*>(records);
    mask_ = capacity - 1;
    capacity_ = capacity;
    head_ = reinterpret_cast<std::atomic<uint64_t>*>(head);
    sealed_ = reinterpret_cast<std::atomic<uint64_t>*>(sealed);
    next_op_id_ = reinterpret_cast<std::atomic<int64_t>*>(op_ids);
    stream_ = stream;
    block_ = block;
    dropped_.store(0);
  }
  void close() { records_ = nullptr; }
  bool is_open() const { return records_ != nullptr; }

  int64_t reserve_op_id() { return next_op_id_->fetch_add(1, std::memory_order_relaxed); }
  uint64_t reserve() { return head_->fetch_add(1, std::memory_order_relaxed); }
  uint64_t dropped() const { return dropped_.load(); }

  // Returns false, and counts, when a stream ring has no room left: training never waits for a disk.
  bool emit(const Record& r) {
    if (!records_) return false;
    if (stream_ && full() && !(block_ && wait_for_room())) {
      dropped_.fetch_add(1, std::memory_order_relaxed);
      return false;
    }
    uint64_t position = reserve();
    char* slot = records_ + sizeof(Record) * (position & mask_);
    auto* seq = reinterpret_cast<std::atomic<int64_t>*>(slot + offsetof(Record, seq));
    seq->store(0, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
    std::memcpy(slot, &r, offsetof(Record, seq));
    seq->store(int64_t(position) + 1, std::memory_order_release);
    return true;
  }

 private:
  // Other threads may reserve between this look and their own write, hence the margin.
  bool full() const {
    return head_->load(std::memory_order_relaxed) + std::min<uint64_t>(256, capacity_ / 4) >=
           sealed_->load(std::memory_order_relaxed) + capacity_;
  }
  bool wait_for_room() const {
    for (int i = 0; i < 20000 && full(); ++i) usleep(100);
    return !full();
  }

  char* records_ = nullptr;
  uint64_t mask_ = 0, capacity_ = 0;
  std::atomic<uint64_t>* head_ = nullptr;
  std::atomic<uint64_t>* sealed_ = nullptr;
  std::atomic<int64_t>* next_op_id_ = nullptr;
  std::atomic<uint64_t> dropped_{0};
  bool stream_ = false, block_ = false;
};

}  // namespace tracelens
