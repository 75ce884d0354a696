// Tensors that Python hands in: batches, a step's arguments, what an unobserved update wrote.
#include "observer.h"

namespace tracelens {

int64_t Observer::value_id(const at::Tensor& tensor) {
  Span span;
  return tensor.defined() && span_of(tensor.unsafeGetTensorImpl(), span) ? values.find(span) : kNoId;
}

// Gives tensors that came from outside a producer of phase `data`; returns its op id, or -1 if
// every tensor already has a producer and only the unknown were asked for.
int64_t Observer::register_data(const std::vector<at::Tensor>& tensors, int32_t site, bool only_unknown) {
  ThreadState& ts = state();
  OpenOp op;
  static const OpInfo info("data");
  op.info = &info;
  op.phase = kData;
  op.site = site;
  std::vector<const at::TensorImpl*> outs;
  std::vector<Span> spans;
  for (const auto& t : tensors) {
    Span span;
    if (!t.defined() || !span_of(t.unsafeGetTensorImpl(), span)) continue;
    const int64_t known = values.find(span);
    if (only_unknown && known != kNoId) continue;
    op.in_ids.push_back(known);  // what a collate function in this process computed
    outs.push_back(t.unsafeGetTensorImpl());
    spans.push_back(span);
  }
  if (outs.empty()) return kNoId;
  op.op_id = ring.reserve_op_id();
  op.start_ns = monotonic_ns();
  std::vector<int64_t> ids;
  bool hit = false;
  for (size_t i = 0; i < outs.size(); ++i) {
    ids.push_back(value_of(op.op_id, int64_t(i)));
    values.write(spans[i], ids.back(), true);
    if (has_nonfinite(outs[i])) hit = true;
  }
  write_op(ts, op, outs, ids, hit, true);
  return op.op_id;
}

int Observer::record_update(const std::vector<at::Tensor>& parameters, const std::string& name) {
  static thread_local OpenOp op;
  static thread_local std::unordered_map<std::string, std::unique_ptr<OpInfo>> known;
  auto& info = known[name];
  if (!info) info = std::make_unique<OpInfo>(name);
  ThreadState& ts = state();
  op.info = info.get();
  op.phase = kOptimizer;
  op.flags = kInplace;
  op.fwd_op = kNoId;
  op.op_id = ring.reserve_op_id();
  op.start_ns = monotonic_ns();
  op.site = site_of(ts, *info, find_place(codes, classify_code), 0, op);
  op.flags = kInplace;
  op.in_ids.clear();
  op.inputs.clear();
  std::vector<const at::TensorImpl*> outs;
  std::vector<int64_t> ids;
  outs.reserve(parameters.size());
  ids.reserve(parameters.size());
  int first_bad = -1;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const at::TensorImpl* impl = parameters[i].unsafeGetTensorImpl();
    const at::Tensor& gradient = parameters[i].grad();
    Span span;
    if (gradient.defined()) {
      const bool plain = span_of(gradient.unsafeGetTensorImpl(), span);
      op.in_ids.push_back(plain ? values.find(span) : kNoId);
      op.inputs.push_back(gradient.getIntrusivePtr());
    }
    ids.push_back(value_of(op.op_id, int64_t(i)));
    outs.push_back(impl);
    if (span_of(impl, span)) values.write(span, ids.back(), true);
    if (first_bad < 0 && has_nonfinite(impl)) first_bad = int(i);
  }
  if (!outs.empty()) write_op(ts, op, outs, ids, first_bad >= 0, true);
  op.inputs.clear();
  return first_bad;
}

int Observer::check_sinks(const char* kind, const std::vector<at::Tensor>& tensors,
                          const std::vector<std::string>& names, int64_t op_id) {
  int bad = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].defined() || !has_nonfinite(tensors[i].unsafeGetTensorImpl())) continue;
    ++bad;
    const std::string name = i < names.size() ? names[i] : std::string();
    sink(kind, name, op_id, value_id(tensors[i]), tensors[i].unsafeGetTensorImpl());
  }
  return bad;
}

}  // namespace tracelens
