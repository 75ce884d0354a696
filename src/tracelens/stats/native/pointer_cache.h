// A small direct-mapped cache in front of a larger table: one cache line a look-up, where the
// tables' buckets, nodes and branches would each cost one, cold, between two large kernels.

#ifndef TRACELENS_POINTER_CACHE_H
#define TRACELENS_POINTER_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include <vector>

namespace tl {

inline size_t mix_address(uintptr_t address) {
  return (size_t)(((uint64_t)address >> 4) * 0x9E3779B97F4A7C15ull >> 32);
}

template <class Value, size_t SIZE>
class PointerCache {
 public:
  // The value last put under an address, null if another address has taken its place.
  Value* find(uintptr_t address) {
    Entry& entry = entries_[mix_address(address) % SIZE];
    return entry.address == address && address ? &entry.value : nullptr;
  }
  void put(uintptr_t address, const Value& value) {
    Entry& entry = entries_[mix_address(address) % SIZE];
    entry.address = address;
    entry.value = value;
  }
  void drop(uintptr_t address) {
    Entry& entry = entries_[mix_address(address) % SIZE];
    if (entry.address == address) entry.address = 0;
  }
  void clear() { entries_.assign(SIZE, Entry()); }

 private:
  struct Entry {
    uintptr_t address = 0;
    Value value{};
  };
  std::vector<Entry> entries_ = std::vector<Entry>(SIZE);
};

}  // namespace tl

#endif  // TRACELENS_POINTER_CACHE_H
