// The custom ops, and what Python calls in this library. One translation unit: TensorFlow's
// headers take most of the time to compile.
#include "probe.h"
#include "tensorflow/core/framework/common_shape_fns.h"

using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::NoOutputs;
using tracelens::Recorder;

REGISTER_OP("TraceLensCheck")
    .Input("inputs: T")
    .Attr("T: list(type) >= 1")
    .Attr("slots: list(int) >= 1")
    .SetIsStateful()
    .SetShapeFn(NoOutputs)
    .Doc("Raises a sticky flag if an input holds a NaN or an Inf.");

REGISTER_OP("TraceLensFrame")
    .Input("arguments: T")
    .Output("frame: int64")
    .Attr("T: list(type) >= 0")
    .Attr("graph: int")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Vector(tracelens::FRAME_ARGUMENTS + c->num_inputs()));
      return tensorflow::OkStatus();
    })
    .Doc("Begins the record of one run of a graph.");

REGISTER_OP("TraceLensProbe")
    .Input("frame: int64")
    .Input("values: T")
    .Attr("T: list(type) >= 0")
    .Attr("graph: int")
    .Attr("op: int")
    .Attr("slots: list(int) >= 0")
    .Attr("also: list(int) >= 0")
    .SetIsStateful()
    .SetShapeFn(NoOutputs)
    .Doc("Measures the outputs of an op and records it.");

REGISTER_OP("TraceLensLink")
    .Input("frame: int64")
    .Input("values: T")
    .Attr("T: list(type) >= 0")
    .Attr("codes: list(int) >= 0")
    .Attr("graph: int")
    .SetIsStateful()
    .SetShapeFn(NoOutputs)
    .Doc("Tells where the values lie that another graph is handed.");

REGISTER_OP("TraceLensKeys")
    .Input("inputs: T")
    .Output("keys: int64")
    .Attr("T: list(type) >= 1")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Vector(c->num_inputs()));
      return tensorflow::OkStatus();
    })
    .Doc("Returns the keys by which variables are known to the recorder.");

REGISTER_KERNEL_BUILDER(Name("TraceLensCheck").Device(tensorflow::DEVICE_CPU), tracelens::CheckOp);
REGISTER_KERNEL_BUILDER(Name("TraceLensFrame").Device(tensorflow::DEVICE_CPU), tracelens::FrameOp);
REGISTER_KERNEL_BUILDER(Name("TraceLensProbe").Device(tensorflow::DEVICE_CPU), tracelens::ProbeOp);
REGISTER_KERNEL_BUILDER(Name("TraceLensLink").Device(tensorflow::DEVICE_CPU), tracelens::LinkOp);
REGISTER_KERNEL_BUILDER(Name("TraceLensKeys").Device(tensorflow::DEVICE_CPU), tracelens::KeysOp);

extern "C" {

uint64_t tracelens_check_block() { return uint64_t(uintptr_t(&tracelens::check_block())); }
int64_t tracelens_check_log_size() { return tracelens::CheckBlock::log_size; }

void tracelens_open(uint64_t records, uint64_t capacity, uint64_t head, uint64_t sealed,
                    uint64_t op_ids, int32_t stream, int32_t block, int64_t epoch_ns,
                    int32_t (*intern)(const char*, const char*)) {
  Recorder& r = Recorder::get();
  r.forget();
  r.ring.open(records, capacity, head, sealed, 0, stream, block, op_ids);
  r.epoch_ns = epoch_ns;
  r.intern = intern;
}
void tracelens_close() {
  Recorder& r = Recorder::get();
  r.level = 0;
  r.ring.close();
  r.intern = nullptr;
}
int64_t tracelens_reserve() { return int64_t(Recorder::get().ring.reserve()); }
int64_t tracelens_reserve_op_id() { return Recorder::get().ring.reserve_op_id(); }
void tracelens_set_step(int64_t step, int32_t level) {
  Recorder::get().step = step;
  Recorder::get().level = level;
}
int64_t tracelens_hits() { return Recorder::get().hits; }
int64_t tracelens_ops() { return Recorder::get().ops; }
int64_t tracelens_dropped() { return Recorder::get().ring.dropped(); }

int64_t tracelens_take_hits(int64_t* out, int64_t room) {
  const auto hits = Recorder::get().take_hits();
  int64_t n = 0;
  for (const auto& hit : hits) {
    if (n == room) break;
    memcpy(out + 5 * n++, &hit, sizeof hit);
  }
  return n;
}

int64_t tracelens_find(uint64_t low, uint64_t high) {
  return Recorder::get().find_range(low, high);
}
void tracelens_put(uint64_t low, uint64_t high, int64_t id) {
  Recorder::get().put_range(low, high, id);
}

// Which values variables hold, by key.
void tracelens_find_variables(const int64_t* keys, int64_t n, int64_t* ids) {
  for (int64_t i = 0; i < n; ++i) ids[i] = Recorder::get().find_variable(uint64_t(keys[i]));
}
void tracelens_put_variables(const int64_t* keys, int64_t n, const int64_t* ids) {
  for (int64_t i = 0; i < n; ++i) Recorder::get().put_variable(uint64_t(keys[i]), ids[i]);
}

int64_t tracelens_graph(int64_t n_ops) { return Recorder::get().graphs.add(n_ops); }
void tracelens_graph_op(int64_t graph, int64_t index, int32_t site, int32_t phase, int32_t kind,
                        int32_t flags, int32_t fwd_graph, int32_t fwd_op, int32_t n_out,
                        const int64_t* inputs, int64_t n_inputs, const char* in_layout,
                        const char* out_layout) {
  auto* op = Recorder::get().graphs.op(graph, index);
  if (!op) return;
  op->site = site;
  op->phase = uint8_t(phase);
  op->kind = uint8_t(kind);
  op->flags = uint16_t(flags);
  op->fwd_graph = fwd_graph;
  op->fwd_op = fwd_op;
  op->n_out = uint8_t(n_out > 255 ? 255 : n_out);
  op->inputs.assign(inputs, inputs + n_inputs);
  op->in_layout = in_layout;
  op->out_layout = out_layout;
}
void tracelens_graph_constant(int64_t graph, int64_t index, const int64_t* counts,
                              const double* numbers) {
  auto* op = Recorder::get().graphs.op(graph, index);
  if (!op) return;
  op->constant = TlStats{counts[0], counts[1],  counts[2],  counts[3],  counts[4], counts[5],
                         numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]};
  op->has_constant = true;
}

}  // extern "C"
