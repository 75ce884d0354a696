// Collectives as process groups run them: when this process was ready, and when it was done.
//
// A process group tells of a collective in a RecordFunction of scope USER_SCOPE named after its
// backend ("gloo:all_reduce"), which begins on the thread that runs it and ends where it completes.
// Ops are of another scope, so this costs nothing per op.
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include <ATen/record_function.h>

#include "record.h"

namespace tracelens {

struct Collective {
  std::string name;
  std::string dtype;
  int64_t index = 0, step = 0, start_ns = 0, end_ns = 0, numel = 0, size_bytes = 0;
  int32_t tid = 0;
};

class Collectives {
 public:
  static Collectives& get() {
    static Collectives* one = new Collectives();
    return *one;
  }

  void start(int64_t epoch_ns);
  void stop();
  std::vector<Collective> take();

  std::atomic<int64_t> step{0}, done{0}, dropped{0};

 private:
  friend std::unique_ptr<at::ObserverContext> collective_begins(const at::RecordFunction&);
  friend void collective_ends(const at::RecordFunction&, at::ObserverContext*);

  static constexpr size_t kMost = 1 << 18;  // between two calls of take()
  std::mutex mutex_;
  std::vector<Collective> finished_;
  int64_t epoch_ns_ = 0, next_ = 0, session_ = 0;
  at::CallbackHandle handle_ = at::INVALID_CALLBACK_HANDLE;
};

namespace {

struct OpenCollective : at::ObserverContext {
  Collective it;
  int64_t session = 0;
};

bool is_collective(const char* name) {
  for (const char* prefix : {"gloo:", "nccl:", "mpi:", "ucc:", "xccl:"})
    if (std::strncmp(name, prefix, std::strlen(prefix)) == 0) return true;
  return false;
}

void add_tensor(Collective& c, const at::Tensor& t) {
  if (!t.defined()) return;
  c.numel += t.numel();
  c.size_bytes += t.numel() * int64_t(t.element_size());
  if (c.dtype.empty()) c.dtype = c10::toString(t.scalar_type());
}

}  // namespace

std::unique_ptr<at::ObserverContext> collective_begins(const at::RecordFunction& rf) {
  if (!is_collective(rf.name())) return nullptr;
  auto& all = Collectives::get();
  auto open = std::make_unique<OpenCollective>();
  open->it.name = rf.name();
  open->it.tid = int32_t(syscall(SYS_gettid));
  open->it.step = all.step.load(std::memory_order_relaxed);
  for (const auto& value : rf.inputs()) {
    if (value.isTensor()) add_tensor(open->it, value.toTensor());
    if (value.isTensorList())
      for (const auto& t : value.toTensorVector()) add_tensor(open->it, t);
  }
  std::lock_guard<std::mutex> lock(all.mutex_);
  open->it.index = all.next_++;
  open->session = all.session_;
  open->it.start_ns = monotonic_ns();
  return open;
}

void collective_ends(const at::RecordFunction&, at::ObserverContext* context) {
  const int64_t now = monotonic_ns();
  auto* open = static_cast<OpenCollective*>(context);
  if (!open) return;
  auto& all = Collectives::get();
  std::lock_guard<std::mutex> lock(all.mutex_);
  if (open->session != all.session_) return;
  if (all.finished_.size() >= Collectives::kMost) {
    all.dropped++;
    return;
  }
  open->it.end_ns = now - all.epoch_ns_;
  open->it.start_ns -= all.epoch_ns_;
  all.finished_.push_back(std::move(open->it));
  all.done++;
}

void Collectives::start(int64_t epoch_ns) {
  stop();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    finished_.clear();
    epoch_ns_ = epoch_ns;
    next_ = 0;
    ++session_;
  }
  step = done = dropped = 0;
  handle_ = at::addGlobalCallback(at::RecordFunctionCallback(collective_begins, collective_ends)
                                      .needsInputs(true)
                                      .scopes({at::RecordScope::USER_SCOPE}));
}

void Collectives::stop() {
  if (handle_ != at::INVALID_CALLBACK_HANDLE) at::removeCallback(handle_);
  handle_ = at::INVALID_CALLBACK_HANDLE;
}

std::vector<Collective> Collectives::take() {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Collective> taken;
  taken.swap(finished_);
  done = 0;
  return taken;
}

}  // namespace tracelens
