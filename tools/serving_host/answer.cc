#include <cstdio>
#include <iostream>

#include "commands.h"
#include "json_lines.h"
#include "latencies.h"
#include "tensorflow/core/framework/types.h"
#include "tensorflow/core/platform/errors.h"
#include "xla/tsl/platform/statusor.h"

namespace serving_host {
namespace {

std::vector<std::string> ReadLines(int count) {
  std::vector<std::string> lines;
  std::string line;
  while (static_cast<int>(lines.size()) < count && std::getline(std::cin, line)) {
    lines.push_back(line);
  }
  return lines;
}

tensorflow::Tensor ToTensor(const std::vector<std::string>& texts) {
  tensorflow::Tensor tensor(tensorflow::DT_STRING,
                            {static_cast<int64_t>(texts.size())});
  for (size_t i = 0; i < texts.size(); ++i) {
    tensor.vec<tensorflow::tstring>()(i) = texts[i];
  }
  return tensor;
}

void PrintAnswers(const absl::StatusOr<NamedTensors>& outputs, size_t count) {
  for (size_t row = 0; row < count; ++row) {
    Json::Value line = StatusToJson(outputs.status());
    if (outputs.ok()) {
      line = Json::Value(Json::objectValue);
      for (const auto& [name, tensor] : *outputs) {
        line[name] = RowToJson(tensor, row);
      }
    }
    PrintLine(line);
  }
}

}  // namespace

absl::Status Answer(const Model& model, int batch_size) {
  Request request;
  TF_ASSIGN_OR_RETURN(std::string input, model.OnlyStringInput(request.signature));
  Latencies latencies;
  double first_seconds = 0;
  int64_t texts = 0, batches = 0;
  while (true) {
    std::vector<std::string> lines = ReadLines(batch_size);
    if (lines.empty()) break;
    ToTensor(lines).AsProtoField(&request.inputs[input]);
    Stopwatch watch;
    absl::StatusOr<NamedTensors> outputs = model.Predict(request);
    double seconds = watch.Seconds();
    // The first call also optimises the graph.
    if (++batches == 1) {
      first_seconds = seconds;
    } else {
      latencies.Add(seconds);
    }
    texts += lines.size();
    PrintAnswers(outputs, lines.size());
  }
  std::fprintf(stderr, "%ld texts in %ld batches; first batch %.2f ms", texts, batches,
               1e3 * first_seconds);
  if (batches > 1) {
    std::fprintf(stderr, ", others p50 %.2f ms, p99 %.2f ms",
                 latencies.PercentileMs(50), latencies.PercentileMs(99));
  }
  std::fprintf(stderr, "\n");
  return absl::OkStatus();
}

}  // namespace serving_host
