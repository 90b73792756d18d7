#include "json_lines.h"

#include <iostream>

#include "tensorflow/core/framework/types.h"

namespace serving_host {
namespace {

using tensorflow::DataType;
using tensorflow::Tensor;

// Element i of a flat tensor; a dtype that no signature here has is told in words.
Json::Value Element(const Tensor& tensor, int64_t i) {
  switch (tensor.dtype()) {
    case DataType::DT_STRING:
      return Json::Value(std::string(tensor.flat<tensorflow::tstring>()(i)));
    case DataType::DT_FLOAT:
      return Json::Value(tensor.flat<float>()(i));
    case DataType::DT_INT32:
      return Json::Value(tensor.flat<int32_t>()(i));
    case DataType::DT_INT64:
      return Json::Value(Json::Int64(tensor.flat<int64_t>()(i)));
    default:
      return Json::Value(tensor.SummarizeValue(1));
  }
}

Json::Value Nested(const Tensor& tensor, int axis, int64_t begin, int64_t end) {
  if (axis == tensor.dims()) return Element(tensor, begin);
  Json::Value list(Json::arrayValue);
  int64_t size = tensor.dim_size(axis);
  for (int64_t i = 0; i < size; ++i) {
    int64_t step = (end - begin) / size;
    list.append(Nested(tensor, axis + 1, begin + i * step, begin + (i + 1) * step));
  }
  return list;
}

}  // namespace

Json::Value TensorToJson(const Tensor& tensor) {
  Json::Value value;
  value["dtype"] = tensorflow::DataTypeString(tensor.dtype());
  value["shape"] = Json::Value(Json::arrayValue);
  for (int64_t size : tensor.shape().dim_sizes()) {
    value["shape"].append(Json::Int64(size));
  }
  value["values"] = Json::Value(Json::arrayValue);
  for (int64_t i = 0; i < tensor.NumElements(); ++i) {
    value["values"].append(Element(tensor, i));
  }
  return value;
}

Json::Value RowToJson(const Tensor& tensor, int64_t row) {
  int64_t step = tensor.NumElements() / tensor.dim_size(0);
  return Nested(tensor, 1, row * step, (row + 1) * step);
}

Json::Value StatusToJson(const absl::Status& status) {
  Json::Value value;
  value["status"] = absl::StatusCodeToString(status.code());
  if (!status.ok()) value["message"] = std::string(status.message());
  return value;
}

void PrintLine(const Json::Value& value) {
  Json::StreamWriterBuilder builder;
  builder["indentation"] = "";
  builder["precision"] = 9;  // Enough for every float32.
  // NaN and Infinity, as Python reads them.
  builder["useSpecialFloats"] = true;
  std::cout << Json::writeString(builder, value) << std::endl;
}

}  // namespace serving_host
