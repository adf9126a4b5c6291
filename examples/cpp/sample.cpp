// Samples from an artifact in two threads: sample ARTIFACT OUT COUNT SEED [CONDITION LABEL]
//
// OUT receives the samples as float32 without a header.
//
//     c++ -std=c++17 sample.cpp $(pkg-config --cflags --libs cqc) -lpthread -o sample
#include "cqc.hpp"

#include <fstream>
#include <future>
#include <iostream>

int main(int argc, char **argv) {
    if (argc != 5 && argc != 7) {
        std::cerr << "usage: sample ARTIFACT OUT COUNT SEED [CONDITION LABEL]\n";
        return 2;
    }
    try {
        const cqc::Artifact artifact(argv[1]);
        cqc::Request request;
        request.samples = std::stoul(argv[3]);
        request.seed = std::stoull(argv[4]);
        if (argc == 7) {
            std::vector<std::int64_t> label{std::stoll(argv[6])};
            request.conditions.emplace_back(argv[5], cqc::Array({1}, label));
        }
        auto run = [&] {
            CqcLoopOptions options{};
            options.batch = request.samples;
            options.threads = 1;
            options.device = 1;
            return artifact.open(options).sample(request, [](std::size_t e, std::size_t n) {
                std::cerr << e + 1 << " of " << n << '\n';
                return true;
            });
        };
        auto other = std::async(std::launch::async, run);
        const std::vector<float> samples = run();
        if (samples != other.get()) throw std::runtime_error("two threads made different samples");
        std::ofstream out(argv[2], std::ios::binary);
        auto bytes = static_cast<std::streamsize>(samples.size() * sizeof(float));
        out.write(reinterpret_cast<const char *>(samples.data()), bytes);
        if (!out.flush()) throw std::runtime_error("cannot write the samples");
    } catch (const std::exception &e) {
        std::cerr << e.what() << '\n';
        return 1;
    }
}
