// Answers as lines of JSON, in ASCII: what is no UTF-8 stands as U+FFFD.

#ifndef SERVING_HOST_JSON_LINES_H_
#define SERVING_HOST_JSON_LINES_H_

#include <string>

#include "absl/status/status.h"
#include "json/json.h"
#include "tensorflow/core/framework/tensor.h"

namespace serving_host {

// {"dtype": ..., "shape": [...], "values": [...]}, the values in row-major order.
Json::Value TensorToJson(const tensorflow::Tensor& tensor);

// One row of a tensor (b, ...), its values nested as its shape is.
Json::Value RowToJson(const tensorflow::Tensor& tensor, int64_t row);

// {"status": "OK"}, or {"status": CODE, "message": ...}.
Json::Value StatusToJson(const absl::Status& status);

// Writes a line to stdout at once.
void PrintLine(const Json::Value& value);

}  // namespace serving_host

#endif  // SERVING_HOST_JSON_LINES_H_
