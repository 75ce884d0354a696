// Which value the bytes at an address hold: the id of the last op that wrote them.

#ifndef TRACELENS_VALUE_RANGES_H
#define TRACELENS_VALUE_RANGES_H

#include <stdint.h>

#include <map>
#include <vector>

namespace tl {

struct ByteRange {
  uintptr_t low, high;  // [low, high)
};

// Blocks of memory that ops made, ordered by address and disjoint, each with the partial writes
// that came after it. Memory that is reused replaces the blocks it overlaps.
class ValueRanges {
 public:
  int64_t find(const ByteRange& range) const {
    const Block* block = containing(range.low);
    if (!block) return -1;
    for (auto it = block->partial.rbegin(); it != block->partial.rend(); ++it) {
      if (it->low < range.high && range.low < it->high) return it->id;
    }
    return block->id;
  }

  // A fresh output owns its memory; an in-place write covers only its own bytes of a block.
  void write(const ByteRange& range, int64_t id, bool fresh) {
    if (range.high <= range.low) return;
    auto it = blocks_.lower_bound(range.low);
    if (!fresh) {
      if (Block* block = containing(range.low)) {
        if (range.low <= block->low && range.high >= block->high) {
          block->id = id;
          block->partial.clear();
        } else {
          write_part(block, range, id);
        }
        return;
      }
    }
    if (it != blocks_.begin()) {
      auto before = std::prev(it);
      if (before->second.high > range.low) blocks_.erase(before);
    }
    if (it != blocks_.end() && it->first == range.low) {
      it->second.high = range.high;
      it->second.id = id;
      it->second.partial.clear();
      ++it;
    } else {
      if (blocks_.size() >= max_blocks) {
        blocks_.clear();
        it = blocks_.end();
      }
      it = std::next(blocks_.emplace_hint(it, range.low, Block{range.low, range.high, id, {}}));
    }
    while (it != blocks_.end() && it->first < range.high) it = blocks_.erase(it);
  }

  void clear() { blocks_.clear(); }

 private:
  // Bounds on memory: past them the oldest partial writes, or all blocks, are forgotten.
  static constexpr size_t max_partial = 64, max_blocks = 1 << 20;
  struct Part {
    uintptr_t low, high;
    int64_t id;
  };
  struct Block {
    uintptr_t low, high;
    int64_t id;
    std::vector<Part> partial;
  };

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

  Block* containing(uintptr_t address) {
    return const_cast<Block*>(static_cast<const ValueRanges*>(this)->containing(address));
  }
  const Block* containing(uintptr_t address) const {
    auto it = blocks_.upper_bound(address);
    if (it == blocks_.begin()) return nullptr;
    --it;
    return address < it->second.high ? &it->second : nullptr;
  }

  std::map<uintptr_t, Block> blocks_;
};

}  // namespace tl

#endif  // TRACELENS_VALUE_RANGES_H
