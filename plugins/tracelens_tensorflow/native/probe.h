// The ops of capture="ops". A frame op runs once for each run of a graph and reserves its ops'
// ids, so that a value's id follows from the graph alone; a probe op after each op measures its
// outputs and writes its record; a link op tells where in memory the values lie that another
// graph, or Python, will be handed.
#pragma once

#include "recorder.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"

namespace tracelens {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;

// The frame tensor: first op id (-1: nothing is recorded), step, level, then the arguments' ids.
enum FrameField { FRAME_BASE = 0, FRAME_STEP = 1, FRAME_LEVEL = 2, FRAME_ARGUMENTS = 3 };

struct Frame {
  const int64_t* fields;
  int64_t size;

  explicit Frame(const Tensor& t) : fields(t.flat<int64_t>().data()), size(t.NumElements()) {}
  bool on() const { return size > FRAME_ARGUMENTS - 1 && fields[FRAME_BASE] >= 0; }
  bool full() const { return fields[FRAME_LEVEL] > 1; }
  int64_t op_id(int64_t index) const { return fields[FRAME_BASE] + index; }
  int64_t value(int64_t code) const {
    if (code >= 0) return (fields[FRAME_BASE] << 4) + code;
    const int64_t at = FRAME_ARGUMENTS - 2 - code;
    return code == -1 || at >= size ? kNoId : fields[at];
  }
};

inline void put_stats(RingRecord& r, const TlStats& s) {
  r.stat_level = 2;
  r.numel = s.numel;
  r.nan = s.nan;
  r.posinf = s.posinf;
  r.neginf = s.neginf;
  r.zero = s.zero;
  r.vmin = float(s.min);
  r.vmax = float(s.max);
  r.mean = float(s.mean);
  r.std = float(s.std);
  r.l2 = float(s.l2);
}

struct Measured {
  int slot;
  const Tensor* tensor;
  TlStats stats;
  bool bad;
};

class OpRecord {
 public:
  OpRecord(const Frame& frame, int64_t graph, int64_t index, const OpEntry& entry)
      : frame_(frame), graph_(graph), index_(index), entry_(entry), r_(Recorder::get()) {}

  // Measures (or, in a step that is not recorded in full, checks) one output.
  void output(int slot, const Tensor& t) {
    Measured m{slot, &t, {}, false};
    if (is_floating(t)) {
      checked_ = true;
      if (frame_.full()) {
        if (!measure(t, &m.stats)) return;
        m.bad = m.stats.finite < m.stats.numel;
      } else if (has_nonfinite(t)) {
        m.bad = measure(t, &m.stats);
      }
      if (m.bad) {
        bad_ = true;
        bad_slots_ |= int64_t(1) << std::min(slot, 15);
      }
    }
    outputs_.push_back(m);
  }

  // The values it read, where only a run tells them: what another graph returned or wrote.
  void shows(std::vector<int64_t> values) { shown_ = std::move(values); }

  void write() {
    RingRecord r;
    start(&r);
    r.n_out = entry_.n_out;
    const bool written_so = entry_.has_constant && entry_.constant.finite < entry_.constant.numel;
    r.flags = entry_.flags | (checked_ || entry_.has_constant ? tl::CHECKED : 0) |
              (bad_ || written_so ? tl::HIT : 0);
    if (entry_.fwd_op >= 0) r.fwd_op_id = forward_id();
    const bool measured = frame_.full() || bad_ || written_so;
    if (measured) r.layout_id = layout();
    std::vector<int64_t> ids;
    if (shown_.empty()) {
      for (int64_t code : entry_.inputs) ids.push_back(frame_.value(code));
    } else {
      ids = shown_;
    }
    r.n_in = uint8_t(std::min<size_t>(ids.size(), 255));
    for (size_t i = 0; i < ids.size() && i < 4; ++i) r.in_ids[i] = ids[i];
    r.value_id = entry_.kind == VIEW_OF && !ids.empty() ? ids[0] : value_of(r.op_id, 0);
    const Measured* first = nullptr;
    for (const Measured& m : outputs_) {
      if (m.slot == 0 && m.stats.numel > 0) first = &m;
    }
    if (entry_.has_constant && measured) {
      put_stats(r, entry_.constant);
    } else if (first) {
      put_stats(r, first->stats);
    }
    r_.ops.fetch_add(1, std::memory_order_relaxed);
    r_.ring.emit(r);
    for (size_t at = 4; at < ids.size(); at += 4) more_inputs(ids, at);
    for (const Measured& m : outputs_) {
      if (m.stats.numel > 0 && (m.slot > 0 || m.bad)) stat(m, 0, value_of(r.op_id, m.slot), 0);
    }
    if (!bad_) return;
    if (entry_.kind == READ && first && (ids.empty() || ids[0] < 0)) {
      // The variable came in bad: what was read is what it held.
      Measured held = *first;
      held.slot = 0;
      stat(held, 1, kNoId, parameter_flag);
    }
    r_.add_hit(Hit{graph_, index_, r.op_id, r.step, bad_slots_});
  }

 private:
  static constexpr uint16_t parameter_flag = 1;

  void start(RingRecord* r) {
    tl::clear_record(r);
    r->phase = entry_.phase;
    r->tid = Recorder::thread_id();
    r->site_id = entry_.site.load(std::memory_order_relaxed);
    r->op_id = frame_.op_id(index_);
    r->step = frame_.fields[FRAME_STEP];
    r->start_ns = r_.now_ns();
  }

  // A forward op of another graph is one of that graph's last run.
  int64_t forward_id() {
    if (entry_.fwd_graph < 0 || entry_.fwd_graph == graph_) return frame_.op_id(entry_.fwd_op);
    GraphTable* table = r_.graphs.get(entry_.fwd_graph);
    const int64_t base = table ? table->last_base.load(std::memory_order_relaxed) : -1;
    return base < 0 ? kNoId : base + entry_.fwd_op;
  }

  int32_t layout() {
    uint64_t hash = 1;
    for (const Measured& m : outputs_) {
      hash = mix(hash, uint64_t(m.slot) << 32 | uint64_t(m.tensor->dtype()));
      for (int d = 0; d < m.tensor->dims(); ++d) hash = mix(hash, uint64_t(m.tensor->dim_size(d)));
    }
    const uint64_t tag = (hash | 1ull << 63) & ~0xffffffull;
    auto& cached = const_cast<OpEntry&>(entry_).layout;
    const uint64_t known = cached.load(std::memory_order_relaxed);
    if ((known & ~0xffffffull) == tag) return int32_t(known & 0xffffff);
    std::string json = "{\"in\":" + (entry_.in_layout.empty() ? "[]" : entry_.in_layout) + ",\"out\":";
    if (outputs_.empty()) {
      json += entry_.out_layout.empty() ? "[]" : entry_.out_layout;
    } else {
      json += '[';
      int slot = 0;
      for (const Measured& m : outputs_) {
        for (; slot < m.slot; ++slot) json += slot ? ",null" : "null";
        if (slot++) json += ',';
        append_layout(json, *m.tensor);
      }
      json += ']';
    }
    const int32_t id = r_.interned("layout", json + "}");
    if (id > 0 && id < (1 << 24)) cached.store(tag | uint64_t(id), std::memory_order_relaxed);
    return id;
  }

  void more_inputs(const std::vector<int64_t>& ids, size_t at) {
    RingRecord r;
    start(&r);
    r.kind = tl::KIND_INPUTS;
    r.phase = 0;
    r.site_id = 0;
    r.n_in = uint8_t(std::min<size_t>(at, 255));
    for (size_t i = 0; i < 4 && at + i < ids.size(); ++i) r.in_ids[i] = ids[at + i];
    r_.ring.emit(r);
  }

  void stat(const Measured& m, uint8_t role, int64_t value, uint16_t flags) {
    RingRecord r;
    start(&r);
    r.kind = tl::KIND_STAT;
    r.flags = flags;
    r.n_in = role;
    r.n_out = uint8_t(std::min(m.slot, 255));
    r.value_id = value;
    put_stats(r, m.stats);
    if (m.bad) {
      const int64_t size = m.tensor->NumElements();
      const TlView view{m.tensor->data(), dtype_of(m.tensor->dtype()), 1, &size, nullptr};
      tl_first_bad(&view, r.in_ids, 4);
    }
    std::string json;
    append_layout(json, *m.tensor);
    r.layout_id = r_.interned("tensor", json);
    r_.ring.emit(r);
  }

  const Frame& frame_;
  const int64_t graph_, index_;
  const OpEntry& entry_;
  Recorder& r_;
  std::vector<Measured> outputs_;
  std::vector<int64_t> shown_;
  int64_t bad_slots_ = 0;
  bool checked_ = false, bad_ = false;
};

class FrameOp : public OpKernel {
 public:
  explicit FrameOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("graph", &graph_));
    table_ = Recorder::get().graphs.get(graph_);
  }

  void Compute(OpKernelContext* ctx) override {
    Recorder& r = Recorder::get();
    const int n = ctx->num_inputs();
    Tensor* out = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, {FRAME_ARGUMENTS + n}, &out));
    int64_t* fields = out->flat<int64_t>().data();
    // A table of another process (a graph that was saved and loaded) tells nothing here.
    if (!table_ || !r.on()) {
      fields[FRAME_BASE] = kNoId;
      return;
    }
    fields[FRAME_BASE] = r.ring.reserve_op_ids(int64_t(table_->ops.size()));
    fields[FRAME_STEP] = r.step.load(std::memory_order_relaxed);
    fields[FRAME_LEVEL] = r.level.load(std::memory_order_relaxed);
    table_->last_base.store(fields[FRAME_BASE], std::memory_order_relaxed);
    const Frame frame(*out);
    for (int i = 0; i < n; ++i) {
      const Tensor& t = ctx->input(i);
      int64_t id = r.find(t);
      if (id < 0 && i < int(table_->ops.size()) && table_->ops[i]->kind == ARGUMENT &&
          t.dtype() != tensorflow::DT_RESOURCE) {
        id = value_of(frame.op_id(i), 0);
        OpRecord record(frame, graph_, i, *table_->ops[i]);
        record.output(0, t);
        record.write();
      }
      fields[FRAME_ARGUMENTS + i] = id;
    }
  }
  bool IsExpensive() override { return false; }

 private:
  int64_t graph_ = -1;
  GraphTable* table_ = nullptr;
};

class ProbeOp : public OpKernel {
 public:
  explicit ProbeOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("graph", &graph_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("op", &index_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("slots", &slots_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("also", &also_));
    entry_ = Recorder::get().graphs.op(graph_, index_);
  }

  void Compute(OpKernelContext* ctx) override {
    const Frame frame(ctx->input(0));
    Recorder& r = Recorder::get();
    if (!entry_ || !frame.on() || !r.on()) return;
    for (int64_t index : also_) {
      const OpEntry* entry = r.graphs.op(graph_, index);
      if (entry) OpRecord(frame, graph_, index, *entry).write();
    }
    OpRecord record(frame, graph_, index_, *entry_);
    if (entry_->kind == WRITE) {
      write_variable(ctx, frame, record);
      return;
    }
    std::vector<int64_t> shown;
    for (int i = 1; i < ctx->num_inputs(); ++i) {
      const Tensor& t = ctx->input(i);
      if (entry_->kind == CALL) {
        shown.push_back(r.find(t));
      } else if (t.dtype() == tensorflow::DT_RESOURCE) {
        shown.push_back(r.find(t));  // what was written last to the variable that is read
        continue;
      }
      record.output(int(slots_[i - 1]), t);
    }
    record.shows(std::move(shown));
    record.write();
  }
  bool IsExpensive() override { return false; }

 private:
  void write_variable(OpKernelContext* ctx, const Frame& frame, OpRecord& record) {
    tensorflow::core::RefCountPtr<tensorflow::Var> variable;
    const auto handle = tensorflow::HandleFromInput(ctx, 1);
    if (tensorflow::LookupResource(ctx, handle, &variable).ok()) {
      tensorflow::tf_shared_lock lock(*variable->mu());
      if (variable->tensor()->IsInitialized()) record.output(0, *variable->tensor());
      record.write();
    } else {
      record.write();
    }
    Recorder::get().put(ctx->input(1), value_of(frame.op_id(index_), 0));
  }

  int64_t graph_ = -1, index_ = -1;
  std::vector<int64_t> slots_, also_;
  const OpEntry* entry_ = nullptr;
};

class LinkOp : public OpKernel {
 public:
  explicit LinkOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("codes", &codes_));
    int64_t graph = -1;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("graph", &graph));
    for (int64_t code : codes_) {
      const OpEntry* entry = code < 0 ? nullptr : Recorder::get().graphs.op(graph, code >> 4);
      returned_.push_back(entry && entry->kind == CALL);
    }
  }
  void Compute(OpKernelContext* ctx) override {
    const Frame frame(ctx->input(0));
    if (!frame.on()) return;
    for (int i = 1; i < ctx->num_inputs(); ++i) {
      const Tensor& t = ctx->input(i);
      if (t.dtype() == tensorflow::DT_RESOURCE) continue;
      const int64_t id = frame.value(codes_[i - 1]);
      // What a call returned is known by the op inside that made it, which has a higher id.
      if (returned_[i - 1] && Recorder::get().find(t) > id) continue;
      Recorder::get().put(t, id);
    }
  }
  bool IsExpensive() override { return false; }

 private:
  std::vector<int64_t> codes_;
  std::vector<bool> returned_;
};

// Gives the keys by which the recorder knows variables.
class KeysOp : public OpKernel {
 public:
  using OpKernel::OpKernel;
  void Compute(OpKernelContext* ctx) override {
    Tensor* out = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, {ctx->num_inputs()}, &out));
    for (int i = 0; i < ctx->num_inputs(); ++i)
      out->flat<int64_t>()(i) = Recorder::key_of(ctx->input(i));
  }
  bool IsExpensive() override { return false; }
};

}  // namespace tracelens
