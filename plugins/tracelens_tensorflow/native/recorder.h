// The process's one recorder of probed ops: the ring, the step, and which value is where.
#pragma once

#include <sys/syscall.h>

#include "check.h"
#include "graphs.h"
#include "tensorflow/core/framework/resource_handle.h"
#include "tensorflow/core/framework/variant.h"
#include "value_ranges.h"

namespace tracelens {

using tl::RingRecord;

constexpr int64_t kNoId = -1;

inline int64_t value_of(int64_t op_id, int64_t slot) {
  return op_id < 0 ? kNoId : (op_id << 4) | (slot > 15 ? 15 : slot);
}

// A hit as Python reads it.
struct Hit {
  int64_t graph, op, op_id, step, slots;  // slots: a bit for each bad output
};

class Recorder {
 public:
  static Recorder& get() {
    static Recorder* recorder = new Recorder();
    return *recorder;
  }

  tl::RingWriter ring;
  Graphs graphs;
  std::atomic<int64_t> step{0}, hits{0}, ops{0};
  std::atomic<int32_t> level{0};  // 0 off, 1 outputs are only checked, 2 measured
  int64_t epoch_ns = 0;
  // Interns JSON of a kind ("layout", "tensor"); a Python function, which takes the GIL itself.
  int32_t (*intern)(const char* kind, const char* json) = nullptr;

  bool on() const { return level.load(std::memory_order_relaxed) > 0 && ring.is_open(); }

  int64_t find(const Tensor& t) {
    if (t.dtype() == tensorflow::DT_RESOURCE) {
      return t.NumElements() == 1 ? find_variable(key_of(t)) : kNoId;
    }
    const auto range = range_of(t);
    if (range.high <= range.low) return kNoId;
    std::lock_guard<std::mutex> lock(mutex_);
    return values_.find(range);
  }

  void put(const Tensor& t, int64_t id) {
    if (t.dtype() == tensorflow::DT_RESOURCE) {
      if (t.NumElements() == 1) put_variable(key_of(t), id);
      return;
    }
    const auto range = range_of(t);
    if (range.high <= range.low) return;
    std::lock_guard<std::mutex> lock(mutex_);
    values_.write(range, id, true);
  }

  int64_t find_variable(uint64_t key) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto it = variables_.find(key);
    return it == variables_.end() ? kNoId : it->second;
  }

  void put_variable(uint64_t key, int64_t id) {
    std::lock_guard<std::mutex> lock(mutex_);
    variables_[key] = id;
  }

  void put_range(uintptr_t low, uintptr_t high, int64_t id) {
    std::lock_guard<std::mutex> lock(mutex_);
    values_.write(tl::ByteRange{low, high}, id, true);
  }

  int64_t find_range(uintptr_t low, uintptr_t high) {
    std::lock_guard<std::mutex> lock(mutex_);
    return values_.find(tl::ByteRange{low, high});
  }

  void forget() {
    graphs.forget_layouts();
    std::lock_guard<std::mutex> lock(mutex_);
    values_.clear();
    variables_.clear();
    interned_.clear();
    hit_log_.clear();
  }

  int32_t interned(const char* kind, const std::string& json) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const auto it = interned_.find(json);
      if (it != interned_.end()) return it->second;
    }
    const int32_t id = intern ? intern(kind, json.c_str()) : 0;
    std::lock_guard<std::mutex> lock(mutex_);
    if (interned_.size() > (1 << 18)) interned_.clear();
    interned_[json] = id;
    return id;
  }

  void add_hit(const Hit& hit) {
    hits.fetch_add(1, std::memory_order_relaxed);
    std::lock_guard<std::mutex> lock(mutex_);
    if (hit_log_.size() < max_hits) hit_log_.push_back(hit);
  }

  std::vector<Hit> take_hits() {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<Hit> taken;
    taken.swap(hit_log_);
    return taken;
  }

  static int32_t thread_id() {
    static thread_local int32_t tid = int32_t(syscall(SYS_gettid));
    return tid;
  }

  int64_t now_ns() const { return tl::monotonic_ns() - epoch_ns; }

  static uint64_t key_of(const Tensor& t) {
    const auto& handle = t.scalar<tensorflow::ResourceHandle>()();
    if (handle.IsRefCounting()) return uint64_t(uintptr_t(handle.resource().get()));
    return mix(std::hash<std::string>()(handle.container()),
               std::hash<std::string>()(handle.name()));
  }

 private:
  static constexpr size_t max_hits = 4096;

  static tl::ByteRange range_of(const Tensor& t) {
    if (t.NumElements() == 0 || !t.IsInitialized()) return {0, 0};
    const auto low = uintptr_t(t.data());
    const size_t bytes = t.dtype() == tensorflow::DT_VARIANT ? sizeof(tensorflow::Variant)
                                                             : t.TotalBytes();
    return {low, low + bytes};
  }

  std::mutex mutex_;
  tl::ValueRanges values_;
  std::unordered_map<uint64_t, int64_t> variables_;
  std::unordered_map<std::string, int32_t> interned_;
  std::vector<Hit> hit_log_;
};

}  // namespace tracelens
