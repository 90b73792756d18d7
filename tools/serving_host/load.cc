#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "commands.h"
#include "json_lines.h"
#include "latencies.h"
#include "tensorflow/core/platform/errors.h"
#include "xla/tsl/platform/statusor.h"

namespace serving_host {
namespace {

constexpr double kMemoryEverySeconds = 10;

// Resident memory of this process, in MiB.
double ResidentMib() {
  std::ifstream file("/proc/self/statm");
  int64_t all_pages = 0, resident_pages = 0;
  file >> all_pages >> resident_pages;
  return static_cast<double>(resident_pages) * sysconf(_SC_PAGESIZE) / (1 << 20);
}

int64_t Examples(const Request& request) {
  const auto& shape = request.inputs.begin()->second.tensor_shape();
  return shape.dim_size() == 0 ? 1 : shape.dim(0).size();
}

// The requests of a file, each answered once: as with TF Serving's warm-up, nothing is
// measured of the calls in which TensorFlow optimises the graph.
absl::StatusOr<std::vector<Request>> WarmRequests(const Model& model,
                                                  const std::string& path) {
  TF_ASSIGN_OR_RETURN(std::vector<tensorflow::tstring> records, ReadRecords(path));
  std::vector<Request> requests;
  for (const tensorflow::tstring& record : records) {
    TF_ASSIGN_OR_RETURN(Request request, ParseRecord(record));
    TF_RETURN_IF_ERROR(model.Predict(request).status());
    requests.push_back(std::move(request));
  }
  if (requests.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " holds no record"));
  }
  return requests;
}

// Threads that send requests, each the next of the list, until they are told to stop.
class Senders {
 public:
  Senders(const Model& model, const std::vector<Request>& requests, int count)
      : model_(model), requests_(requests) {
    for (int i = 0; i < count; ++i) {
      threads_.emplace_back([this] { Send(); });
    }
  }

  void Stop() {
    stopped_ = true;
    for (std::thread& thread : threads_) thread.join();
  }

  // What was sent in that many seconds; after `Stop`.
  Json::Value Summary(double seconds) const {
    Json::Value line;
    line["requests_per_second"] = answered_ / seconds;
    line["examples_per_second"] = examples_ / seconds;
    line["p50_ms"] = latencies_.PercentileMs(50);
    line["p99_ms"] = latencies_.PercentileMs(99);
    line["requests"] = Json::Int64(answered_);
    line["errors"] = Json::Int64(errors_);
    if (errors_ > 0) line["first_error"] = first_error_;
    return line;
  }

 private:
  void Send() {
    while (!stopped_) {
      const Request& request = requests_[next_++ % requests_.size()];
      Stopwatch watch;
      absl::Status status = model_.Predict(request).status();
      if (status.ok()) {
        latencies_.Add(watch.Seconds());
        ++answered_;
        examples_ += Examples(request);
      } else if (errors_++ == 0) {
        std::lock_guard<std::mutex> lock(mutex_);
        first_error_ = std::string(status.message());
      }
    }
  }

  const Model& model_;
  const std::vector<Request>& requests_;
  std::atomic<bool> stopped_{false};
  std::atomic<uint64_t> next_{0};
  std::atomic<int64_t> answered_{0}, examples_{0}, errors_{0};
  std::mutex mutex_;
  std::string first_error_;
  Latencies latencies_;
  std::vector<std::thread> threads_;
};

// Waits, and gives resident memory at the beginning, each ten seconds, and at the end.
Json::Value SampleMemory(const Stopwatch& watch, double seconds) {
  Json::Value samples(Json::arrayValue);
  samples.append(ResidentMib());
  while (watch.Seconds() < seconds) {
    double wait = std::min(kMemoryEverySeconds, seconds - watch.Seconds());
    std::this_thread::sleep_for(std::chrono::duration<double>(wait));
    samples.append(ResidentMib());
  }
  return samples;
}

}  // namespace

absl::Status Load(const Model& model, const std::string& path, double seconds,
                  const std::vector<int>& concurrencies) {
  TF_ASSIGN_OR_RETURN(std::vector<Request> requests, WarmRequests(model, path));
  for (int concurrency : concurrencies) {
    Stopwatch watch;
    Senders senders(model, requests, concurrency);
    Json::Value memory = SampleMemory(watch, seconds);
    senders.Stop();
    double taken = watch.Seconds();
    Json::Value line = senders.Summary(taken);
    line["concurrency"] = concurrency;
    line["seconds"] = taken;
    line["resident_mib"] = memory;
    PrintLine(line);
  }
  return absl::OkStatus();
}

}  // namespace serving_host
