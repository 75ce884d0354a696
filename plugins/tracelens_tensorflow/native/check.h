// The check op: a sink that looks once at each of its inputs and raises a sticky flag.
#pragma once

#include <atomic>
#include <vector>

#include "tensors.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace tracelens {

// What Python reads without a call into TensorFlow; int64 throughout (native/__init__.py: Block).
struct CheckBlock {
  static constexpr int64_t log_size = 1024;
  std::atomic<int64_t> enabled{1};
  std::atomic<int64_t> hits{0};    // bad tensors so far, never reset
  std::atomic<int64_t> checks{0};  // tensors looked at so far
  std::atomic<int64_t> log[log_size];  // the slot of hit i is log[i % log_size]
};

inline CheckBlock& check_block() {
  static CheckBlock* block = new CheckBlock();
  return *block;
}

inline void log_hit(int64_t slot) {
  CheckBlock& block = check_block();
  // The slot is in place before a reader can learn that there is one.
  const int64_t at = block.hits.load(std::memory_order_relaxed);
  block.log[at % CheckBlock::log_size].store(slot, std::memory_order_relaxed);
  int64_t taken = at;
  while (!block.hits.compare_exchange_weak(taken, taken + 1, std::memory_order_release)) {
    block.log[taken % CheckBlock::log_size].store(slot, std::memory_order_relaxed);
  }
}

class CheckOp : public tensorflow::OpKernel {
 public:
  explicit CheckOp(tensorflow::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("slots", &slots_));
    OP_REQUIRES(ctx, int(slots_.size()) == num_inputs(),
                tensorflow::errors::InvalidArgument("slots must name each input"));
  }

  void Compute(tensorflow::OpKernelContext* ctx) override {
    CheckBlock& block = check_block();
    if (!block.enabled.load(std::memory_order_relaxed)) return;
    block.checks.fetch_add(ctx->num_inputs(), std::memory_order_relaxed);
    for (int i = 0; i < ctx->num_inputs(); ++i) {
      if (has_nonfinite(ctx->input(i))) log_hit(slots_[i]);
    }
  }

  // The executor runs it where its input was made, instead of waking another thread for it.
  bool IsExpensive() override { return false; }

 private:
  std::vector<int64_t> slots_;
};

}  // namespace tracelens
