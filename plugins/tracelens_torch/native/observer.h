// The observer's state: one per process, and one per thread that runs ops.
#pragma once

#include <ATen/record_function.h>
#include <Python.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/function.h>

#include <array>
#include <atomic>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "frames.h"
#include "measure.h"
#include "ops.h"
#include "record.h"
#include "values.h"

namespace tracelens {

struct Sink {
  const char* kind;
  std::string name;
  int64_t step, op_id, value_id, t_ns;
  std::string dtype;
  std::vector<int64_t> shape;
  TlStats stats;
  std::array<int64_t, 4> first_bad;
  at::Tensor tensor;  // a parameter that Python is to name
};

// An op that has started and not ended.
struct OpenOp {
  const at::RecordFunction* rf = nullptr;
  const OpInfo* info = nullptr;
  int64_t op_id = kNoId, start_ns = 0, fwd_op = kNoId;
  int32_t site = 0;
  uint16_t flags = 0;
  uint8_t phase = kOther;
  bool silent = false;  // views and composites at guard level: nothing is written
  int children = 0;
  std::vector<int64_t> in_ids;
  std::vector<uintptr_t> in_bases;
  std::vector<c10::ScalarType> in_dtypes;
  std::vector<c10::intrusive_ptr<at::TensorImpl>> inputs;
  std::vector<int> in_args;
};

struct SiteKey {
  const OpInfo* info = nullptr;
  const void* where = nullptr;  // code object, or null with `at` a forward op's site
  const void* module = nullptr;
  int32_t at = 0;
  bool operator==(const SiteKey& o) const {
    return info == o.info && where == o.where && module == o.module && at == o.at;
  }
};
struct SiteHash {
  size_t operator()(const SiteKey& k) const {
    size_t h = reinterpret_cast<uintptr_t>(k.info) >> 4;
    h = h * 0x9E3779B97F4A7C15ull + (reinterpret_cast<uintptr_t>(k.where) >> 4);
    h = h * 0x9E3779B97F4A7C15ull + (reinterpret_cast<uintptr_t>(k.module) >> 4);
    h = h * 0x9E3779B97F4A7C15ull + size_t(k.at);
    return h ^ (h >> 29);
  }
};

// How often, and in how many steps, a site made non-finite values that were no news.
struct SiteHits {
  int64_t last_step = -1;
  int steps = 0, in_step = 0;
};

struct ThreadState {
  std::vector<OpenOp> open = std::vector<OpenOp>(32);
  int depth = 0;
  const at::RecordFunction* opaque = nullptr;  // everything below it is implementation detail
  const at::RecordFunction* hushed = nullptr;  // no events are even sent from below it
  int below = 0;                               // events from below the opaque op
  OpTable ops;
  std::unordered_map<SiteKey, int32_t, SiteHash> sites;
  uint64_t epoch = 0;
  uint8_t phase = kOther;
  int32_t tid = 0;
  bool busy = false;  // our own code is running Python: nothing is observed
};

struct Settings {
  bool ops_level = false;
  bool check = true;
  bool thorough = false;  // harmless ops are checked too
};

class Observer {
 public:
  static Observer& get() {
    static Observer* observer = new Observer();
    return *observer;
  }

  ThreadState& state();
  void start(const Settings& settings);
  void stop();

  std::unique_ptr<at::ObserverContext> on_start(const at::RecordFunction& rf);
  void on_end(const at::RecordFunction& rf);

  int64_t register_data(const std::vector<at::Tensor>& tensors, int32_t site, bool only_unknown);
  // Tells what an unobserved optimizer step wrote; returns the index of its first bad parameter.
  int record_update(const std::vector<at::Tensor>& parameters, const std::string& name);
  int check_sinks(const char* kind, const std::vector<at::Tensor>& tensors,
                  const std::vector<std::string>& names, int64_t op_id);
  std::vector<Sink> take_sinks();
  // The value last asked about with isfinite() in this step, if it was bad.
  std::vector<Sink> take_tested();
  int64_t value_id(const at::Tensor& tensor);
  void add_parameters(const std::vector<at::Tensor>& tensors);

  // Loses what is remembered of addresses whose meaning may have changed (modules, code).
  void forget_sites() { epoch_.fetch_add(1); }

  Ring ring;
  ValueTable values;
  CodeTable codes;
  Settings settings;
  std::atomic<bool> enabled{false};
  std::atomic<int64_t> step{0}, hits{0}, ops_seen{0}, failures{0}, sinks_pending{0};
  std::atomic<bool> wake_on_sink{false};
  int64_t epoch_ns = 0;
  // Python functions, called with the GIL: classify_op(name), classify_code(code),
  // make_site(name, code, lasti, module, forward site, exact), intern_layout(json), on_sink().
  PyObject *py_classify_op = nullptr, *py_classify_code = nullptr, *py_make_site = nullptr,
           *py_intern = nullptr, *py_on_sink = nullptr;
  std::string last_failure;
  std::mutex failure_mutex;

 private:
  // Which ops' outputs are not looked at because their inputs tell what they hold.
  uint16_t unchecked() const { return settings.thorough ? 0 : kHarmless; }

  struct Forward {
    std::atomic<int64_t> seq{-2};
    uint64_t thread = 0;
    int64_t op_id = kNoId;
    int32_t site = 0;
  };

  struct Backward {
    bool running = false;
    int64_t fwd_op = kNoId;
    int32_t fwd_site = 0;
  };

  Backward running_backward();
  void remember_forward(const at::RecordFunction& rf, const OpenOp& op);
  int32_t site_of(ThreadState& ts, const OpInfo& info, const Place& place, int32_t fwd_site,
                  OpenOp& op);
  void take_inputs(ThreadState& ts, const at::RecordFunction& rf, OpenOp& op, bool keep);
  void finish(ThreadState& ts, const at::RecordFunction& rf, OpenOp& op);
  void write_op(ThreadState& ts, OpenOp& op, const std::vector<const at::TensorImpl*>& outs,
                const std::vector<int64_t>& out_ids, bool hit, bool checked);
  void write_stat(const OpenOp& op, int32_t tid, uint8_t role, int slot, int64_t value_id,
                  const at::TensorImpl* impl, const TlStats& stats, uint16_t flags);
  int32_t intern_layout(ThreadState& ts, const char* kind, const std::string& json);
  Sink make_sink(const char* kind, const std::string& name, int64_t op_id, int64_t value,
                 const at::TensorImpl* impl, bool keep);
  void sink(const char* kind, const std::string& name, int64_t op_id, int64_t value,
            const at::TensorImpl* impl, bool keep = false);
  bool is_known_parameter(const at::TensorImpl* impl);
  void failed(const char* what);
  Forward& forward_slot(int64_t seq, uint64_t thread) {
    return forward_[(size_t(seq) ^ size_t(thread) * 0x9E3779B1u) & (forward_.size() - 1)];
  }

  std::vector<Forward> forward_ = std::vector<Forward>(size_t{1} << 16);
  std::unordered_map<std::string, int32_t> layouts_;
  std::unordered_map<int32_t, SiteHits> site_hits_;
  std::unordered_set<uintptr_t> parameter_bases_;
  std::mutex mutex_;
  std::mutex sinks_mutex_;
  std::vector<Sink> sinks_;
  std::optional<Sink> tested_;
  std::atomic<uint64_t> epoch_{1};
  at::CallbackHandle handle_ = at::INVALID_CALLBACK_HANDLE;
};

// Asks Python, once per code object, whose code it is.
CodeClass classify_code(PyObject* code);
// Whether a profiler listens to the calling thread: it must miss nothing.
bool profiled();
// The phase that the calling thread's ops belong to (kOther: found from the frames).
void observer_phase(uint8_t phase);
// Stops or resumes observing the calling thread; returns what it was.
bool observer_mute(bool muted);

// Holds the GIL for a call into Python and keeps the observer from watching what that runs.
class PythonCall {
 public:
  // How many of this thread are running: an exception raised inside of one would be lost.
  static inline thread_local int running = 0;

  explicit PythonCall(bool& busy) : busy_(busy), was_busy_(busy), gil_(PyGILState_Ensure()) {
    ++running;
    busy_ = true;
    PyErr_Fetch(&type_, &value_, &trace_);
  }
  ~PythonCall() {
    --running;
    PyErr_Restore(type_, value_, trace_);
    busy_ = was_busy_;
    PyGILState_Release(gil_);
  }
  PythonCall(const PythonCall&) = delete;

 private:
  bool& busy_;
  bool was_busy_;
  PyGILState_STATE gil_;
  PyObject *type_ = nullptr, *value_ = nullptr, *trace_ = nullptr;
};

}  // namespace tracelens
