// Bad values where they matter: what the program reads, tests, or hands to an optimizer.
#include "observer.h"

namespace tracelens {

Sink Observer::make_sink(const char* kind, const std::string& name, int64_t op_id, int64_t value,
                         const at::TensorImpl* impl, bool keep) {
  Sink s{kind, name, step.load(), op_id, value, monotonic_ns() - epoch_ns, "", {}, {}, {}, {}};
  if (keep)
    s.tensor = at::Tensor(c10::intrusive_ptr<at::TensorImpl>::reclaim_copy(
        const_cast<at::TensorImpl*>(impl)));
  s.dtype = dtype_name(c10::typeMetaToScalarType(impl->dtype()));
  s.shape.assign(impl->sizes().begin(), impl->sizes().end());
  measure(impl, s.stats);
  Record r = blank_record();
  put_first_bad(r, impl);
  std::copy(std::begin(r.in_ids), std::end(r.in_ids), s.first_bad.begin());
  return s;
}

std::vector<Sink> Observer::take_tested() {
  std::lock_guard<std::mutex> lock(sinks_mutex_);
  std::vector<Sink> taken;
  if (tested_ && tested_->step == step.load()) taken.push_back(*tested_);
  tested_.reset();
  return taken;
}

// Calls Python's part soon, in the user's frame that runs then: inside of a function that we called
// its exception would be lost, so it is put off.
static int wake(void* callable) {
  if (PythonCall::running) {
    Py_AddPendingCall(wake, callable);
    return 0;
  }
  PyObject* done = PyObject_CallNoArgs(static_cast<PyObject*>(callable));
  Py_XDECREF(done);
  return done ? 0 : -1;
}

void Observer::sink(const char* kind, const std::string& name, int64_t op_id, int64_t value,
                    const at::TensorImpl* impl, bool keep) {
  Sink s = make_sink(kind, name, op_id, value, impl, keep);
  {
    std::lock_guard<std::mutex> lock(sinks_mutex_);
    if (sinks_.size() < 4096) sinks_.push_back(std::move(s));
  }
  sinks_pending.fetch_add(1);
  if (wake_on_sink.load() && py_on_sink) Py_AddPendingCall(wake, py_on_sink);
}

std::vector<Sink> Observer::take_sinks() {
  std::lock_guard<std::mutex> lock(sinks_mutex_);
  std::vector<Sink> taken;
  taken.swap(sinks_);
  sinks_pending = 0;
  return taken;
}

}  // namespace tracelens
