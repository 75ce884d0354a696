// Writes ring records: an op, its further inputs, the statistics of its tensors.
#include "observer.h"

namespace tracelens {

void Observer::write_op(ThreadState& ts, OpenOp& op, const std::vector<const at::TensorImpl*>& outs,
                        const std::vector<int64_t>& out_ids, bool hit, bool checked) {
  Record r = blank_record();
  r.kind = kOp;
  r.phase = op.phase;
  r.tid = ts.tid;
  r.site_id = op.site;
  r.op_id = op.op_id;
  r.step = step.load(std::memory_order_relaxed);
  r.parent_id = ts.depth > 0 && settings.ops_level ? ts.open[ts.depth - 1].op_id : kNoId;
  r.fwd_op_id = op.fwd_op;
  if (settings.ops_level) {
    r.duration_ns = monotonic_ns() - op.start_ns;
    r.start_ns = op.start_ns - epoch_ns;
  } else {
    r.start_ns = monotonic_ns() - epoch_ns;
  }
  const size_t n_in = op.in_ids.size();
  r.n_in = uint8_t(std::min<size_t>(n_in, 255));
  r.n_out = uint8_t(std::min<size_t>(outs.size(), 255));
  for (size_t i = 0; i < n_in && i < 4; ++i) r.in_ids[i] = op.in_ids[i];
  if (!out_ids.empty()) r.value_id = out_ids[0];

  // A site that makes Infs step after step (an additive mask) is no news: its output is still
  // counted, but its inputs are measured again only when a NaN appears.
  bool detail = hit;
  int site_steps = 0;
  TlStats first{};
  bool have_first = false;
  if (hit || (settings.ops_level && !(op.flags & (kView | kComposite)) && !outs.empty() &&
              is_floating(outs[0]))) {
    have_first = !outs.empty() && measure(outs[0], first);
    if (have_first) put_stats(r, first);
  }
  if (hit) {
    hits.fetch_add(1, std::memory_order_relaxed);
    std::lock_guard<std::mutex> lock(mutex_);
    SiteHits& s = site_hits_[op.site];
    if (s.last_step != r.step) {
      s.last_step = r.step;
      s.in_step = 0;
      ++s.steps;
    }
    ++s.in_step;
    detail = s.steps <= 8 && s.in_step <= 32;
    site_steps = s.steps;
  }
  if (hit && first.nan > 0) detail = site_steps <= 64;
  r.flags = uint16_t(op.flags | (hit ? kHit : 0) | (checked ? kChecked : 0));
  if (detail || settings.ops_level) {
    std::string json = "{\"in\":[";
    for (size_t i = 0; i < op.inputs.size(); ++i) {
      if (i) json += ',';
      append_layout(json, op.inputs[i].get());
    }
    json += "],\"out\":[";
    for (size_t i = 0; i < outs.size(); ++i) {
      if (i) json += ',';
      append_layout(json, outs[i]);
    }
    json += "]}";
    r.layout_id = intern_layout(ts, "layout", json);
  }
  ring.emit(r);
  for (size_t at = 4; at < n_in; at += 4) {
    Record more = blank_record();
    more.kind = kInputs;
    more.tid = ts.tid;
    more.op_id = op.op_id;
    more.step = r.step;
    more.start_ns = r.start_ns;
    more.n_in = uint8_t(std::min<size_t>(at, 255));
    for (size_t i = 0; i < 4 && at + i < n_in; ++i) more.in_ids[i] = op.in_ids[at + i];
    ring.emit(more);
  }
  if (!detail && !settings.ops_level) return;
  if (hit && have_first) write_stat(op, ts.tid, 0, 0, r.value_id, outs[0], first, 0);
  for (size_t i = 1; i < outs.size(); ++i) {
    TlStats s{};
    if (is_floating(outs[i]) && !(op.flags & kComposite) && measure(outs[i], s))
      write_stat(op, ts.tid, 0, int(i), out_ids[i], outs[i], s, 0);
  }
  if (!detail) return;
  for (size_t i = 0; i < op.inputs.size() && i < 64; ++i) {
    const at::TensorImpl* impl = op.inputs[i].get();
    TlStats s{};
    if (!is_floating(impl) || !measure(impl, s)) continue;
    uint16_t flags = 0;
    if (is_known_parameter(impl)) flags |= kParameter;
    if (op.flags & kInplace)
      for (const auto* out : outs)
        if (out == impl || (out->has_storage() && impl->has_storage() &&
                            out->unsafe_storage().data() == impl->unsafe_storage().data()))
          flags |= kOverwritten;
    write_stat(op, ts.tid, 1, int(i), op.in_ids[i], impl, s, flags);
  }
}

void Observer::write_stat(const OpenOp& op, int32_t tid, uint8_t role, int slot, int64_t value,
                          const at::TensorImpl* impl, const TlStats& stats, uint16_t flags) {
  Record r = blank_record();
  r.kind = kStat;
  r.flags = flags;
  r.phase = op.phase;
  r.tid = tid;
  r.site_id = op.site;
  r.op_id = op.op_id;
  r.step = step.load(std::memory_order_relaxed);
  r.start_ns = monotonic_ns() - epoch_ns;
  r.n_in = role;
  r.n_out = uint8_t(std::min(slot, 255));
  r.value_id = value;
  put_stats(r, stats);
  if (stats.nan + stats.posinf + stats.neginf > 0) put_first_bad(r, impl);
  std::string json;
  append_layout(json, impl);
  ThreadState& ts = state();
  r.layout_id = intern_layout(ts, "tensor", json);
  ring.emit(r);
}

int32_t Observer::intern_layout(ThreadState& ts, const char* kind, const std::string& json) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto it = layouts_.find(json);
    if (it != layouts_.end()) return it->second;
  }
  if (!Py_IsInitialized()) return 0;
  PythonCall call(ts.busy);
  PyObject* r = PyObject_CallFunction(py_intern, "ss", kind, json.c_str());
  const int32_t id = r ? int32_t(PyLong_AsLong(r)) : 0;
  Py_XDECREF(r);
  PyErr_Clear();
  std::lock_guard<std::mutex> lock(mutex_);
  layouts_.emplace(json, id);
  return id;
}

}  // namespace tracelens
