// The ring record and its lock-free writer, framework-free: mirrors storage/format.py, RECORD,
// field by field (a test compares the two).

#ifndef TRACELENS_RING_RECORD_H
#define TRACELENS_RING_RECORD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

namespace tl {

enum RecordKind : uint8_t { KIND_OP = 0, KIND_STAT = 1, KIND_INPUTS = 2 };
enum PhaseCode : uint8_t { OTHER = 0, DATA = 1, FORWARD = 2, BACKWARD = 3, OPTIMIZER = 4 };
enum OpFlagBits : uint16_t {
  HIT = 1,
  CHECKED = 2,
  VIEW = 4,
  INPLACE = 8,
  GARBAGE = 16,
  CONSTANT = 32,
  HARMLESS = 64,
  COMPOSITE = 128,
  INEXACT_SOURCE = 256,
  UNSEEN_INPUTS = 2048,
};

#pragma pack(push, 1)
struct RingRecord {
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
static_assert(sizeof(RingRecord) == 176, "RingRecord must match storage.format.RECORD");

inline int64_t monotonic_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

inline void clear_record(RingRecord* r) {
  memset(r, 0, sizeof *r);
  r->op_id = r->parent_id = r->fwd_op_id = r->duration_ns = r->zero = r->value_id = -1;
  for (int i = 0; i < 4; i++) r->in_ids[i] = -1;
}

// The counters of positions and of op ids live in memory that every writer of the process shares.
class RingWriter {
 public:
  void open(uintptr_t records, uint64_t capacity, uintptr_t head, uintptr_t sealed,
            int64_t first_op_id, bool stream, bool block, uintptr_t op_ids = 0) {
    records_ = (char*)records;
    capacity_ = capacity;
    head_ = (std::atomic<uint64_t>*)head;
    sealed_ = (std::atomic<uint64_t>*)sealed;
    // Engines of several frameworks count in one place; an engine alone counts for itself.
    op_ids_ = op_ids ? (std::atomic<int64_t>*)op_ids : &own_op_ids_;
    if (!op_ids) own_op_ids_ = first_op_id;
    stream_ = stream;
    block_ = block;
  }
  void close() { records_ = nullptr; }
  bool is_open() const { return records_ != nullptr; }
  uint64_t reserve() { return head_->fetch_add(1, std::memory_order_relaxed); }
  int64_t reserve_op_id() { return op_ids_->fetch_add(1, std::memory_order_relaxed); }
  // Takes `n` ids in a row; returns the first.
  int64_t reserve_op_ids(int64_t n) { return op_ids_->fetch_add(n, std::memory_order_relaxed); }
  int64_t dropped() const { return dropped_; }

  // Other threads may take positions between this look and the caller's write.
  bool full() const {
    return stream_ && head_->load(std::memory_order_relaxed) + margin >=
                          sealed_->load(std::memory_order_relaxed) + capacity_;
  }
  bool blocks() const { return block_; }

  // False, and counted, where a stream's ring is full: the program never waits for a disk.
  bool emit(const RingRecord& record) {
    if (!records_) return false;
    if (full()) {
      dropped_++;
      return false;
    }
    const uint64_t position = reserve();
    char* slot = records_ + sizeof(RingRecord) * (position % capacity_);
    auto* seq = (std::atomic<int64_t>*)(slot + offsetof(RingRecord, seq));
    // seq is 0 while the rest changes: a reader that copies meanwhile discards its copy.
    seq->store(0, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
    memcpy(slot, &record, offsetof(RingRecord, seq));
    seq->store((int64_t)position + 1, std::memory_order_release);
    return true;
  }

 private:
  static constexpr uint64_t margin = 64;
  char* records_ = nullptr;
  uint64_t capacity_ = 1;
  std::atomic<uint64_t>* head_ = nullptr;
  std::atomic<uint64_t>* sealed_ = nullptr;
  std::atomic<int64_t> own_op_ids_{0}, dropped_{0};
  std::atomic<int64_t>* op_ids_ = &own_op_ids_;
  bool stream_ = false, block_ = false;
};

}  // namespace tl

#endif  // TRACELENS_RING_RECORD_H
