// Which op wrote the bytes a tensor reads: keyed by storage, then by byte range, last writer first.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "record.h"

namespace tracelens {

// The bytes a dense tensor covers, relative to the start of its storage.
struct Span {
  uintptr_t base = 0;
  const void* storage = nullptr;
  int64_t lo = 0, hi = 0;
};

inline bool is_plain(const at::TensorImpl* impl) {
  return impl->has_storage() && !impl->has_symbolic_sizes_strides() && !impl->is_nested() &&
         !impl->key_set().has_any(c10::DispatchKeySet({c10::DispatchKey::Python,
                                                       c10::DispatchKey::FuncTorchBatched,
                                                       c10::DispatchKey::FuncTorchGradWrapper,
                                                       c10::DispatchKey::Functionalize}));
}

inline bool span_of(const at::TensorImpl* impl, Span& span) {
  if (!is_plain(impl)) return false;
  const auto* storage = impl->unsafe_storage().unsafeGetStorageImpl();
  span.base = reinterpret_cast<uintptr_t>(storage->data());
  if (!span.base) return false;
  span.storage = storage;
  const int64_t item = impl->itemsize();
  int64_t extent = impl->numel() == 0 ? 0 : 1;
  if (impl->is_contiguous()) {
    extent = impl->numel();
  } else {
    auto sizes = impl->sizes();
    auto strides = impl->strides();
    for (size_t d = 0; d < sizes.size() && extent; ++d) extent += (sizes[d] - 1) * strides[d];
  }
  span.lo = impl->storage_offset() * item;
  span.hi = span.lo + extent * item;
  return true;
}

class ValueTable {
 public:
  ValueTable() : slots_(size_t{1} << 14) {}

  int64_t find(const Span& span) {
    Lock lock(busy_);
    const Entry* e = locate(span.base);
    if (e->base != span.base || e->storage != span.storage) return kNoId;
    if (overlaps(e->newest, span)) return e->newest.id;
    for (auto it = e->older.rbegin(); it != e->older.rend(); ++it)
      if (overlaps(*it, span)) return it->id;
    return kNoId;
  }

  // The last write to any part of the storage: what an in-place write leaves beside its own bytes
  // is found by going from write to write.
  int64_t newest(const Span& span) {
    Lock lock(busy_);
    const Entry* e = locate(span.base);
    return e->base == span.base && e->storage == span.storage ? e->newest.id : kNoId;
  }

  // A fresh output owns its whole storage; an in-place write covers only its own bytes.
  void write(const Span& span, int64_t id, bool fresh) {
    Lock lock(busy_);
    Entry* e = locate(span.base);
    if (e->base != span.base) {
      if (++used_ * 2 > slots_.size()) {
        grow();
        e = locate(span.base);
      }
      e->base = span.base;
      fresh = true;
    }
    const Range range{span.lo, span.hi, id};
    if (fresh || e->storage != span.storage) {
      e->older.clear();
      e->storage = span.storage;
    } else if (!covers(range, e->newest)) {
      e->older.push_back(e->newest);
    }
    if (!e->older.empty()) {
      auto hidden = [&](const Range& old) { return covers(range, old); };
      e->older.erase(std::remove_if(e->older.begin(), e->older.end(), hidden), e->older.end());
      // A bound on memory: beyond it the first partial write after the oldest is forgotten.
      if (e->older.size() > kMaxRanges) e->older.erase(e->older.begin() + 1);
    }
    e->newest = range;
  }

  void clear() {
    Lock lock(busy_);
    slots_.assign(size_t{1} << 14, Entry());
    used_ = 0;
  }

 private:
  static constexpr size_t kMaxRanges = 64;
  static constexpr size_t kMaxSlots = size_t{1} << 21;
  struct Range {
    int64_t lo = 0, hi = 0, id = kNoId;
  };
  struct Entry {
    uintptr_t base = 0;
    const void* storage = nullptr;
    Range newest;
    std::vector<Range> older;
  };
  struct Lock {
    explicit Lock(std::atomic_flag& f) : flag(f) {
      while (flag.test_and_set(std::memory_order_acquire)) {
      }
    }
    ~Lock() { flag.clear(std::memory_order_release); }
    std::atomic_flag& flag;
  };
  static bool overlaps(const Range& r, const Span& s) {
    return r.id != kNoId && r.lo < s.hi && s.lo < r.hi;
  }
  static bool covers(const Range& outer, const Range& inner) {
    return outer.lo <= inner.lo && outer.hi >= inner.hi;
  }
  Entry* locate(uintptr_t base) {
    const size_t mask = slots_.size() - 1;
    size_t i = (base >> 4) * 0x9E3779B97F4A7C15ull >> 20 & mask;
    while (slots_[i].base && slots_[i].base != base) i = (i + 1) & mask;
    return &slots_[i];
  }
  // Addresses are reused, so the table is bounded by the peak number of live storages; past a
  // generous limit it starts afresh, and older values read as written by nobody known.
  void grow() {
    std::vector<Entry> old;
    old.swap(slots_);
    const bool restart = old.size() >= kMaxSlots;
    slots_.assign(restart ? old.size() : old.size() * 2, Entry());
    used_ = 1;
    if (restart) return;
    for (auto& e : old) {
      if (!e.base) continue;
      *locate(e.base) = std::move(e);
      ++used_;
    }
  }

  std::vector<Entry> slots_;
  size_t used_ = 0;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
};

}  // namespace tracelens
