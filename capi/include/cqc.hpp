// The C++ interface of the cachequant runtime: cqc.h with handles that free themselves. C++17, this
// header alone. Every error is a cqc::Error.
#ifndef CQC_HPP
#define CQC_HPP

#include "cqc.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace cqc {

// An error of the library: its status, and what() is its description.
class Error : public std::runtime_error {
public:
    Error(CqcStatus status, const char *what) : std::runtime_error(what), status_(status) {}
    CqcStatus status() const noexcept { return status_; }

private:
    CqcStatus status_;
};

inline void check(CqcStatus status) {
    if (status != CQC_STATUS_OK) throw Error(status, cqc_last_error());
}

// The version of the library, e.g. 0.2.0.
inline std::string version() { return cqc_version(); }

// An array with a copy of its elements. The first size is the number of samples, or 1.
class Array {
public:
    Array(std::vector<std::size_t> shape, const std::vector<float> &values)
        : Array(CQC_TYPE_F32, std::move(shape), values) {}
    Array(std::vector<std::size_t> shape, const std::vector<std::int64_t> &values)
        : Array(CQC_TYPE_I64, std::move(shape), values) {}

    // A view for the C interface; it is valid as long as this array.
    CqcArray view(const char *name) const {
        return {name, static_cast<std::uint32_t>(type_), shape_.data(), shape_.size(), bytes_.data()};
    }

private:
    template <class T>
    Array(CqcType type, std::vector<std::size_t> shape, const std::vector<T> &values)
        : type_(type), shape_(std::move(shape)) {
        std::size_t count = 1;
        for (std::size_t size : shape_) count *= size;
        if (count != values.size()) throw std::invalid_argument("the shape has another size");
        auto first = reinterpret_cast<const unsigned char *>(values.data());
        bytes_.assign(first, first + values.size() * sizeof(T));
    }

    CqcType type_;
    std::vector<std::size_t> shape_;
    std::vector<unsigned char> bytes_;
};

// A request for samples. Fields that are not set have the defaults of the artifact.
struct Request {
    std::size_t samples = 1;
    std::uint64_t seed = 0;
    float guidance = 0;
    std::vector<std::pair<std::string, Array>> conditions;
    std::vector<std::pair<std::string, Array>> unconditional;
    // Further fields of the C structure, e.g. strength; the arrays above replace its own.
    CqcRequest more{};
};

// Called after every evaluation: its index, and the number of evaluations. `false` cancels.
using Progress = std::function<bool(std::size_t, std::size_t)>;

// A sampling loop with its memory. One thread at a time may use it.
class Loop {
public:
    std::size_t batch() const { return size(0); }
    std::size_t elements() const { return size(1); }
    std::size_t evaluations() const { return size(2); }

    // Runs the whole loop: the samples, row by row.
    std::vector<float> sample(const Request &request, const Progress &progress = {}) const {
        auto views = [](const std::vector<std::pair<std::string, Array>> &arrays) {
            std::vector<CqcArray> all;
            for (const auto &[name, array] : arrays) all.push_back(array.view(name.c_str()));
            return all;
        };
        std::vector<CqcArray> conditions = views(request.conditions);
        std::vector<CqcArray> unconditional = views(request.unconditional);
        CqcRequest what = request.more;
        what.size = sizeof what;
        what.samples = request.samples;
        what.seed = request.seed;
        what.guidance = request.guidance;
        what.conditions = conditions.data();
        what.condition_count = conditions.size();
        what.unconditional = unconditional.data();
        what.unconditional_count = unconditional.size();
        std::vector<float> out(request.samples * elements());
        Call call{progress, nullptr};
        CqcStatus status =
            cqc_sample(loop_.get(), &what, out.data(), out.size(), progress ? &forward : nullptr, &call);
        if (call.thrown) std::rethrow_exception(call.thrown);
        check(status);
        return out;
    }

private:
    friend class Artifact;

    struct Call {
        const Progress &progress;
        std::exception_ptr thrown;
    };

    explicit Loop(CqcLoop *loop) : loop_(loop) {}

    // An exception must not pass the frames of the library: it cancels, and is thrown again after.
    static int forward(void *user, std::size_t e, std::size_t n, std::size_t, std::size_t) {
        auto call = static_cast<Call *>(user);
        try {
            return call->progress(e, n) ? 0 : 1;
        } catch (...) {
            call->thrown = std::current_exception();
            return 1;
        }
    }

    std::size_t size(int which) const {
        std::size_t sizes[3] = {};
        check(cqc_loop_sizes(loop_.get(), &sizes[0], &sizes[1], &sizes[2]));
        return sizes[which];
    }

    struct Free {
        void operator()(CqcLoop *loop) const { cqc_loop_free(loop); }
    };
    std::unique_ptr<CqcLoop, Free> loop_;
};

// An opened artifact. Several threads may use it at once.
class Artifact {
public:
    explicit Artifact(const std::string &path) {
        CqcArtifact *artifact = nullptr;
        check(cqc_open(path.c_str(), &artifact));
        artifact_.reset(artifact);
    }

    Artifact(const void *data, std::size_t len) {
        CqcArtifact *artifact = nullptr;
        check(cqc_open_memory(data, len, &artifact));
        artifact_.reset(artifact);
    }

    // The description of the artifact as JSON.
    std::string info() const {
        std::size_t needed = 0;
        cqc_info(artifact_.get(), nullptr, 0, &needed);
        std::string json(needed, '\0');
        check(cqc_info(artifact_.get(), json.data(), json.size(), &needed));
        json.resize(needed - 1);
        return json;
    }

    // Opens a loop. `options.size` is set here.
    Loop open(CqcLoopOptions options = {}) const {
        options.size = sizeof options;
        CqcLoop *loop = nullptr;
        check(cqc_loop_open(artifact_.get(), &options, &loop));
        return Loop(loop);
    }

private:
    struct Free {
        void operator()(CqcArtifact *artifact) const { cqc_artifact_free(artifact); }
    };
    std::unique_ptr<CqcArtifact, Free> artifact_;
};

} // namespace cqc

#endif // CQC_HPP
