// What is known of the ops of traced graphs, told by Python when a probe is put into a graph.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "ring_record.h"
#include "tensors.h"

namespace tracelens {

// How a probe treats an op (native/tables.py: Kind).
enum OpKind : uint8_t {
  PLAIN = 0,
  VIEW_OF = 1,   // shows its first input: no value of its own
  CONSTANT_OP = 2,  // measured when the graph was traced
  CALL = 3,      // runs another probed graph: its outputs are values of that graph's ops
  WRITE = 4,     // writes a variable, whose new value is its output 0
  READ = 5,      // reads a variable
  ARGUMENT = 6,  // an input of the graph
};

struct OpEntry {
  std::atomic<int32_t> site{0};
  uint8_t phase = 0, kind = PLAIN, n_out = 0;
  uint16_t flags = 0;
  int32_t fwd_graph = -1, fwd_op = -1;
  // Value codes of the inputs. At least 0: an output of this graph, op index * 16 + slot; -1: not
  // known; below: the argument -2 - code.
  std::vector<int64_t> inputs;
  std::string in_layout;   // JSON
  std::string out_layout;  // JSON, where no probe sees the outputs
  TlStats constant{};
  bool has_constant = false;
  // Shapes' hash (high 40 bits) and layout id (low 24) of the last run, in one word.
  std::atomic<uint64_t> layout{0};
};

struct GraphTable {
  std::vector<std::unique_ptr<OpEntry>> ops;
  std::atomic<int64_t> last_base{-1};
};

class Graphs {
 public:
  int64_t add(int64_t n_ops) {
    auto table = std::make_unique<GraphTable>();
    for (int64_t i = 0; i < n_ops; ++i) table->ops.push_back(std::make_unique<OpEntry>());
    std::lock_guard<std::mutex> lock(mutex_);
    tables_.push_back(std::move(table));
    return int64_t(tables_.size()) - 1;
  }
  // Tables live as long as the process: a graph may run while its Python object dies.
  GraphTable* get(int64_t number) {
    std::lock_guard<std::mutex> lock(mutex_);
    return number >= 0 && number < int64_t(tables_.size()) ? tables_[number].get() : nullptr;
  }
  OpEntry* op(int64_t number, int64_t index) {
    GraphTable* table = get(number);
    return table && index >= 0 && index < int64_t(table->ops.size()) ? table->ops[index].get()
                                                                     : nullptr;
  }
  // A new trace has interned nothing yet.
  void forget_layouts() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& table : tables_)
      for (auto& op : table->ops) op->layout = 0;
  }

 private:
  std::mutex mutex_;
  std::deque<std::unique_ptr<GraphTable>> tables_;
};

inline const char* dtype_name(DataType dtype) {
  switch (dtype) {
    case tensorflow::DT_FLOAT: return "float32";
    case tensorflow::DT_DOUBLE: return "float64";
    case tensorflow::DT_HALF: return "float16";
    default: break;
  }
  thread_local std::string name;
  name = tensorflow::DataTypeString(dtype);
  return name.c_str();
}

inline void append_layout(std::string& out, const Tensor& t) {
  if (t.dtype() == tensorflow::DT_RESOURCE || t.dtype() == tensorflow::DT_VARIANT) {
    out += "null";
    return;
  }
  out += "[\"";
  out += dtype_name(t.dtype());
  out += "\",[";
  for (int d = 0; d < t.dims(); ++d) {
    if (d) out += ',';
    out += std::to_string(t.dim_size(d));
  }
  out += "],\"cpu\"]";
}

inline uint64_t mix(uint64_t h, uint64_t x) {
  h = (h ^ x) * 0x9E3779B97F4A7C15ull;
  return h ^ (h >> 29);
}

}  // namespace tracelens
