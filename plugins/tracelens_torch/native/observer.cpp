// Watches every op through at::RecordFunction: checks what it made, remembers who made what.
#include "observer.h"

#include <sys/syscall.h>

#include <cmath>

namespace tracelens {
namespace {

std::unique_ptr<at::ObserverContext> start_hook(const at::RecordFunction& rf) {
  return Observer::get().on_start(rf);
}
void end_hook(const at::RecordFunction& rf, at::ObserverContext*) { Observer::get().on_end(rf); }

uint16_t classify_op(const std::string& name) {
  bool busy = false;
  PythonCall call(busy);
  PyObject* r = PyObject_CallFunction(Observer::get().py_classify_op, "s", name.c_str());
  const long flags = r ? PyLong_AsLong(r) : 0;
  Py_XDECREF(r);
  PyErr_Clear();
  return uint16_t(flags < 0 ? 0 : flags);
}

bool is_bad_scalar(const c10::IValue& v) { return v.isDouble() && !std::isfinite(v.toDouble()); }

// Turning a thread's events off and on costs about as much as two of them: it pays for ops whose
// implementation sends more (addmm: expand, as_strided, copy_ …).
constexpr int kLearnedCalls = 16;
constexpr int kManyBelow = 3;
bool sends_many(const OpInfo& info) {
  return info.calls.load(std::memory_order_relaxed) >= kLearnedCalls &&
         info.below.load(std::memory_order_relaxed) >= kManyBelow * kLearnedCalls;
}

// "autograd::engine::evaluate_function: MulBackward0"
bool is_engine_scope(const char* name) { return std::strncmp(name, "autograd::engine::", 18) == 0; }

// Bits that a type's exponent range can lose when a wider one is cast to it.
int exponent_bits(c10::ScalarType t) {
  switch (t) {
    case at::kHalf:
    case at::kFloat8_e5m2: return 5;
    case at::kFloat8_e4m3fn: return 4;
    case at::kFloat:
    case at::kBFloat16: return 8;
    default: return 11;
  }
}

}  // namespace

CodeClass classify_code(PyObject* code) {
  bool busy = false;
  PythonCall call(busy);
  PyObject* r = PyObject_CallFunctionObjArgs(Observer::get().py_classify_code, code, nullptr);
  const long kind = r ? PyLong_AsLong(r) : kFrameworkCode;
  Py_XDECREF(r);
  PyErr_Clear();
  const auto result = CodeClass(kind <= 0 ? kFrameworkCode : kind);
  Observer::get().codes.add(code, result);
  return result;
}

void Observer::start(const Settings& s) {
  settings = s;
  hits = ops_seen = failures = 0;
  values.clear();
  forget_sites();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    site_hits_.clear();
    parameter_bases_.clear();
    layouts_.clear();
  }
  for (auto& slot : forward_) slot.seq.store(-2);
  take_sinks();
  if (handle_ == at::INVALID_CALLBACK_HANDLE)
    handle_ = at::addGlobalCallback(
        at::RecordFunctionCallback(start_hook, end_hook)
            .needsInputs(true)
            .needsOutputs(true)
            .scopes({at::RecordScope::FUNCTION}));
  enabled = true;
}

void Observer::stop() {
  enabled = false;
  if (handle_ != at::INVALID_CALLBACK_HANDLE) at::removeCallback(handle_);
  handle_ = at::INVALID_CALLBACK_HANDLE;
}

ThreadState& Observer::state() {
  static thread_local ThreadState ts;
  if (!ts.tid) ts.tid = int32_t(syscall(SYS_gettid));
  const uint64_t epoch = epoch_.load(std::memory_order_relaxed);
  if (ts.epoch != epoch) {
    ts.sites.clear();
    ts.epoch = epoch;
  }
  return ts;
}

bool profiled() { return !at::get_record_function_tls_().sorted_tls_callbacks_.empty(); }

void observer_phase(uint8_t phase) { Observer::get().state().phase = phase; }

bool observer_mute(bool muted) {
  bool& busy = Observer::get().state().busy;
  const bool was = busy;
  busy = muted;
  return was;
}

void Observer::failed(const char* what) {
  failures.fetch_add(1);
  std::lock_guard<std::mutex> lock(failure_mutex);
  if (last_failure.empty()) last_failure = what;
}

bool Observer::is_known_parameter(const at::TensorImpl* impl) {
  if (is_parameter(impl)) return true;
  if (!is_plain(impl)) return false;
  const auto base = reinterpret_cast<uintptr_t>(impl->unsafe_storage().data());
  std::lock_guard<std::mutex> lock(mutex_);
  return parameter_bases_.count(base) != 0;
}

void Observer::add_parameters(const std::vector<at::Tensor>& tensors) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& t : tensors)
    if (t.defined() && is_plain(t.unsafeGetTensorImpl()))
      parameter_bases_.insert(reinterpret_cast<uintptr_t>(t.unsafeGetTensorImpl()->unsafe_storage().data()));
}

std::unique_ptr<at::ObserverContext> Observer::on_start(const at::RecordFunction& rf) {
  if (!enabled.load(std::memory_order_relaxed)) return nullptr;
  ThreadState& ts = state();
  if (ts.busy) return nullptr;
  if (ts.opaque) {
    ++ts.below;
    return nullptr;
  }
  try {
    if (is_engine_scope(rf.name())) return nullptr;
    if (ts.depth + 1 >= int(ts.open.size())) ts.open.resize(ts.open.size() * 2);
    const OpInfo& info = ts.ops.find(rf, classify_op);
    OpenOp& op = ts.open[ts.depth];
    op.rf = &rf;
    op.info = &info;
    op.flags = info.flags;
    op.site = 0;
    op.fwd_op = kNoId;
    op.children = 0;
    op.inputs.clear();
    op.in_ids.clear();
    const bool modes = c10::impl::TorchDispatchModeTLS::any_modes_set();
    op.silent = !settings.ops_level && (info.view || (info.composite && !info.by_string));
    const bool first_looks = info.scalar_read || info.ones_like || info.tests;
    if (!op.silent || first_looks) {
      op.op_id = ring.reserve_op_id();
      if (settings.ops_level) op.start_ns = monotonic_ns();
      const bool checks = settings.check && !info.composite &&
                          !(info.flags & (unchecked() | kGarbage | kConstant | kView));
      take_inputs(ts, rf, op,
                  settings.ops_level || checks || info.cast || !info.written.empty() || first_looks);
      const Backward backward = running_backward();
      const Place place = find_place(codes, classify_code);
      op.phase = ts.phase == kOptimizer                   ? uint8_t(kOptimizer)
                 : backward.running || place.in_engine ? uint8_t(kBackward)
                 : ts.phase != kOther                  ? ts.phase
                                                       : uint8_t(kForward);
      op.fwd_op = backward.fwd_op;
      op.site = site_of(ts, info, place, backward.fwd_site, op);
      if (first_looks && !op.inputs.empty()) {
        const at::TensorImpl* first = op.inputs[0].get();
        const bool loss = info.ones_like && place.in_make_grads;
        if ((loss || info.scalar_read) && has_nonfinite(first))
          sink(loss ? "loss" : "read", "", op.op_id, op.in_ids.empty() ? kNoId : op.in_ids[0], first);
      }
      if (info.tests && !op.inputs.empty() && has_nonfinite(op.inputs[0].get())) {
        std::lock_guard<std::mutex> lock(sinks_mutex_);
        tested_ = make_sink("exception", "", op.op_id, op.in_ids[0], op.inputs[0].get(), false);
      }
      if (rf.seqNr() >= 0 && (!info.composite || info.by_string)) remember_forward(rf, op);
    } else if (info.view && rf.seqNr() >= 0) {
      // Not recorded, but its line is that of the op its backward function will run.
      op.op_id = kNoId;
      op.site = site_of(ts, info, find_place(codes, classify_code), running_backward().fwd_site, op);
      remember_forward(rf, op);
    }
    ++ts.depth;
    if (info.opaque && !modes && !(op.flags & kUnseenInputs)) {
      ts.opaque = &rf;
      ts.below = 0;
      if (sends_many(info) && !profiled()) {
        at::enableRecordFunction(false);
        ts.hushed = &rf;
      }
    }
  } catch (const std::exception& e) {
    failed(e.what());
  } catch (...) {
    failed("unknown error when an op started");
  }
  return nullptr;
}

void Observer::take_inputs(ThreadState& ts, const at::RecordFunction& rf, OpenOp& op, bool keep) {
  op.in_bases.clear();
  op.in_dtypes.clear();
  op.in_args.clear();
  int argument = -1;
  auto take = [&](const at::Tensor& t) {
    if (!t.defined()) return;
    at::TensorImpl* impl = t.unsafeGetTensorImpl();
    Span span;
    if (span_of(impl, span)) {
      const bool overwritten = argument == 0 && (op.flags & kInplace);
      op.in_ids.push_back(overwritten ? values.newest(span) : values.find(span));
    } else {
      op.in_ids.push_back(kNoId);
      if (!is_plain(impl)) op.flags |= kUnseenInputs;
    }
    op.in_bases.push_back(span.base);
    op.in_dtypes.push_back(c10::typeMetaToScalarType(impl->dtype()));
    op.in_args.push_back(argument);
    if (keep) op.inputs.push_back(c10::intrusive_ptr<at::TensorImpl>::reclaim_copy(impl));
  };
  for (const auto& v : rf.inputs()) {
    ++argument;
    if (v.isTensor()) {
      take(v.toTensor());
    } else if (v.isTensorList()) {
      for (const auto& t : v.toTensorVector()) take(t);
    } else if (v.isOptionalTensorList()) {
      for (const auto& t : v.toOptionalTensorVector())
        if (t.has_value()) take(*t);
    } else if (is_bad_scalar(v)) {
      op.flags |= kConstant;
    }
  }
}

void Observer::remember_forward(const at::RecordFunction& rf, const OpenOp& op) {
  Forward& f = forward_slot(rf.seqNr(), rf.threadId());
  f.thread = rf.threadId();
  f.op_id = op.op_id;
  f.site = op.site;
  f.seq.store(rf.seqNr(), std::memory_order_release);
}

// The function that autograd runs on this thread, if it does, tied to its forward op by the
// sequence number and thread that made it.
Observer::Backward Observer::running_backward() {
  const auto function = torch::autograd::get_current_node();
  if (!function) return {};
  const auto seq = int64_t(function->sequence_nr());
  const Forward& f = forward_slot(seq, function->thread_id());
  if (seq < 0 || f.seq.load(std::memory_order_acquire) != seq || f.thread != function->thread_id())
    return {true, kNoId, 0};
  return {true, f.op_id, f.site};
}

int32_t Observer::site_of(ThreadState& ts, const OpInfo& info, const Place& place,
                          int32_t fwd_site, OpenOp& op) {
  SiteKey key{&info, nullptr, place.module, 0};
  const bool user_frame = place.code && !place.in_engine;
  if (user_frame) fwd_site = 0;
  if (fwd_site) {
    key.at = fwd_site;
    key.module = nullptr;
  } else {
    key.where = place.code;
    key.at = place.lasti;
  }
  if (!user_frame && !fwd_site) op.flags |= kInexactSource;
  auto it = ts.sites.find(key);
  if (it != ts.sites.end()) return it->second;
  int32_t site = 0;
  if (!Py_IsInitialized()) return site;
  PythonCall call(ts.busy);
  PyObject* r = PyObject_CallFunction(py_make_site, "sOiOii", info.name.c_str(),
                                      fwd_site || !place.code ? Py_None : place.code, place.lasti,
                                      fwd_site || !place.module ? Py_None : place.module, fwd_site,
                                      int(user_frame || fwd_site));
  if (r) {
    site = int32_t(PyLong_AsLong(r));
    Py_DECREF(r);
  }
  if (PyErr_Occurred()) {
    PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
    PyErr_Fetch(&type, &value, &trace);
    PyObject* text = value ? PyObject_Str(value) : nullptr;
    const char* words = text ? PyUnicode_AsUTF8(text) : nullptr;
    failed(("a site could not be named: " + std::string(words ? words : "unknown error")).c_str());
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    PyErr_Clear();
  }
  ts.sites.emplace(key, site);
  return site;
}

void Observer::on_end(const at::RecordFunction& rf) {
  ThreadState& ts = state();
  if (ts.hushed == &rf) {
    at::enableRecordFunction(true);
    ts.hushed = nullptr;
  }
  if (ts.busy) return;
  if (ts.depth == 0 || ts.open[ts.depth - 1].rf != &rf) return;
  OpenOp& op = ts.open[ts.depth - 1];
  if (ts.opaque == &rf) {
    ts.opaque = nullptr;
    if (op.info->calls.load(std::memory_order_relaxed) < kLearnedCalls) {
      op.info->calls.fetch_add(1, std::memory_order_relaxed);
      op.info->below.fetch_add(ts.below, std::memory_order_relaxed);
    }
  }
  --ts.depth;
  try {
    if (enabled.load(std::memory_order_relaxed) && !op.silent) finish(ts, rf, op);
  } catch (const std::exception& e) {
    failed(e.what());
  } catch (...) {
    failed("unknown error when an op ended");
  }
  op.inputs.clear();
}

void Observer::finish(ThreadState& ts, const at::RecordFunction& rf, OpenOp& op) {
  const OpInfo& info = *op.info;
  for (int d = ts.depth - 1; d >= 0; --d) ++ts.open[d].children;
  static thread_local std::vector<const at::TensorImpl*> outs;
  static thread_local std::vector<int64_t> out_ids;
  outs.clear();
  out_ids.clear();
  for (const auto& v : rf.outputs()) {
    if (v.isTensor()) {
      if (v.toTensor().defined()) outs.push_back(v.toTensor().unsafeGetTensorImpl());
    } else if (v.isTensorList()) {
      for (const auto& t : v.toTensorVector())
        if (t.defined()) outs.push_back(t.unsafeGetTensorImpl());
    }
  }
  if (outs.empty() && !info.written.empty())
    for (size_t i = 0; i < op.inputs.size(); ++i)
      for (int argument : info.written)
        if (op.in_args[i] == argument) outs.push_back(op.inputs[i].get());

  const bool composite = info.composite && op.children > 0;
  const bool writes = (info.flags & kInplace) != 0;
  bool aliased = false;
  for (size_t i = 0; i < outs.size(); ++i) {
    Span span;
    int64_t id = kNoId;
    if (info.outside && span_of(outs[i], span)) {
      const bool lifted = !(op.in_bases.empty() || op.in_bases[0] != span.base);
      if (!lifted && values.find(span) != kNoId) return;  // another tensor's storage: an alias
      op.phase = kData;
      op.in_ids.clear();
      op.inputs.clear();
      op.flags = 0;
      id = value_of(op.op_id, int64_t(i));
      values.write(span, id, true);
    } else if (span_of(outs[i], span)) {
      bool alias = false;
      size_t of = 0;
      for (size_t k = 0; k < op.in_bases.size() && !alias; ++k)
        if (op.in_bases[k] == span.base) alias = true, of = k;
      if (composite || (alias && !writes)) {
        id = composite ? values.find(span) : op.in_ids[of];
        aliased = aliased || !composite;
      } else {
        id = value_of(op.op_id, int64_t(i));
        values.write(span, id, !alias);
      }
    }
    out_ids.push_back(id);
  }
  if (aliased) {
    op.flags |= kView;
    if (!settings.ops_level) return;  // it wrote nothing: its base keeps its producer
  }
  ops_seen.fetch_add(1, std::memory_order_relaxed);

  bool checked = false, hit = false;
  const bool harmless = (op.flags & (unchecked() | kGarbage | kConstant | kView)) != 0;
  const bool narrowed = info.cast && !outs.empty() && !op.in_dtypes.empty() &&
                        exponent_bits(c10::typeMetaToScalarType(outs[0]->dtype())) <
                            exponent_bits(op.in_dtypes.back());
  if (narrowed) op.flags &= uint16_t(~kHarmless);
  if (settings.check && !composite && (!harmless || narrowed || ((op.flags & kConstant) && !(info.flags & kConstant)))) {
    checked = true;
    for (const auto* out : outs)
      if (has_nonfinite(out)) hit = true;
  }
  // A parameter written in place outside backward is an update, whoever writes it.
  if (info.arithmetic_write && op.phase == kForward && !outs.empty() && is_known_parameter(outs[0])) {
    op.phase = kOptimizer;
    if (hit && has_nonfinite(outs[0]))
      sink("parameter", "", op.op_id, out_ids[0], outs[0], true);
  }
  write_op(ts, op, outs, out_ids, hit, checked);
}

}  // namespace tracelens
