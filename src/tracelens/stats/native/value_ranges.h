// Which value the bytes at an address hold: the id of the last op that wrote them.

#ifndef TRACELENS_VALUE_RANGES_H
#define TRACELENS_VALUE_RANGES_H

#include <stdint.h>

#include <map>
#include <vector>

#include "pointer_cache.h"

namespace tl {

struct ByteRange {
  uintptr_t low, high;  // [low, high)
};

// Blocks of memory that ops made, ordered by address and disjoint, each with the partial writes
// that came after it. Memory that is reused replaces the blocks it overlaps.
class ValueRanges {
 public:
  int64_t find(const ByteRange& range) {
    const Blocks::iterator it = locate(range.low);
    if (it == blocks_.end()) return -1;
    const Block& block = it->second;
    for (auto part = block.partial.rbegin(); part != block.partial.rend(); ++part) {
      if (part->low < range.high && range.low < part->high) return part->id;
    }
    return block.id;
  }

  // The last write to any byte of the block that holds a range: what an in-place write follows,
  // so that every write to a block leads to the one before it.
  int64_t newest(const ByteRange& range) {
    const Blocks::iterator it = locate(range.low);
    if (it == blocks_.end()) return -1;
    return it->second.partial.empty() ? it->second.id : it->second.partial.back().id;
  }

  // A fresh output owns its memory; an in-place write covers only its own bytes of a block.
  void write(const ByteRange& range, int64_t id, bool fresh) {
    if (range.high <= range.low) return;
    const Blocks::iterator it = locate(range.low);
    const bool known = it != blocks_.end();
    if (known && it->first == range.low && it->second.high == range.high) {
      it->second.id = id;
      it->second.partial.clear();
    } else if (known && !fresh && range.high <= it->second.high) {
      write_part(&it->second, range, id);
    } else {
      insert(range, id);
    }
  }

  void clear() {
    blocks_.clear();
    recent_.clear();
  }

 private:
  // Bounds on memory: past them the oldest partial writes, or all blocks, are forgotten.
  static constexpr size_t max_partial = 64, max_blocks = 1 << 20;
  struct Part {
    uintptr_t low, high;
    int64_t id;
  };
  struct Block {
    uintptr_t high;
    int64_t id;
    std::vector<Part> partial;
  };
  using Blocks = std::map<uintptr_t, Block>;

  static void write_part(Block* block, const ByteRange& range, int64_t id) {
    auto& parts = block->partial;
    for (size_t i = 0; i < parts.size();) {
      if (range.low <= parts[i].low && range.high >= parts[i].high) {
        parts.erase(parts.begin() + (long)i);
      } else {
        i++;
      }
    }
    if (parts.size() >= max_partial) parts.erase(parts.begin());
    parts.push_back(Part{range.low, range.high, id});
  }

  // The block that holds an address, or the end.
  Blocks::iterator locate(uintptr_t address) {
    if (Blocks::iterator* found = recent_.find(address)) return *found;
    auto it = blocks_.upper_bound(address);
    if (it == blocks_.begin()) return blocks_.end();
    --it;
    if (it->first == address) recent_.put(address, it);
    return address < it->second.high ? it : blocks_.end();
  }

  void insert(const ByteRange& range, int64_t id) {
    if (blocks_.size() >= max_blocks) clear();
    auto it = blocks_.lower_bound(range.low);
    if (it != blocks_.begin()) {
      auto before = std::prev(it);
      if (before->second.high > range.low) {
        recent_.drop(before->first);
        blocks_.erase(before);
      }
    }
    if (it != blocks_.end() && it->first == range.low) {
      it->second.high = range.high;
      it->second.id = id;
      it->second.partial.clear();
    } else {
      it = blocks_.emplace_hint(it, range.low, Block{range.high, id, {}});
    }
    recent_.put(range.low, it);
    for (++it; it != blocks_.end() && it->first < range.high;) {
      recent_.drop(it->first);
      it = blocks_.erase(it);
    }
  }

  Blocks blocks_;
  PointerCache<Blocks::iterator, 4096> recent_;
};

}  // namespace tl

#endif  // TRACELENS_VALUE_RANGES_H
