// The custom ops, and what Python calls in this library. One translation unit: TensorFlow's
// headers take most of the time to compile.
#include "check.h"
#include "tensorflow/core/framework/common_shape_fns.h"

using tensorflow::shape_inference::NoOutputs;

REGISTER_OP("TraceLensCheck")
    .Input("inputs: T")
    .Attr("T: list(type) >= 1")
    .Attr("slots: list(int) >= 1")
    .SetIsStateful()
    .SetShapeFn(NoOutputs)
    .Doc("Raises a sticky flag if an input holds a NaN or an Inf.");
REGISTER_KERNEL_BUILDER(Name("TraceLensCheck").Device(tensorflow::DEVICE_CPU), tracelens::CheckOp);

extern "C" {

uintptr_t tracelens_check_block() { return uintptr_t(&tracelens::check_block()); }
int64_t tracelens_check_log_size() { return tracelens::CheckBlock::log_size; }

}  // extern "C"
