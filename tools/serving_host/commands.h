// What the host does with a model.

#ifndef SERVING_HOST_COMMANDS_H_
#define SERVING_HOST_COMMANDS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "model.h"

namespace serving_host {

// Answers every record of a file, in order: a line each.
absl::Status Replay(const Model& model, const std::string& path);

// Answers lines of stdin, `batch_size` at a time: a line each. Latencies to stderr.
absl::Status Answer(const Model& model, int batch_size);

// Sends the requests of a file again and again, from each number of threads for
// `seconds`: a line for each number, with what it reached and took.
absl::Status Load(const Model& model, const std::string& path, double seconds,
                  const std::vector<int>& concurrencies);

}  // namespace serving_host

#endif  // SERVING_HOST_COMMANDS_H_
