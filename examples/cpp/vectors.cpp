// Answers the test vectors of csa-spec for `attend` and `select`, in plain C++:
//
//     csa-spec vectors --write vectors --stage attend,select
//     g++ -std=c++17 -O2 vectors.cpp -o answer
//     ./answer vectors/attend-float32.safetensors attend.safetensors
//     csa-spec judge vectors attend.safetensors
//
// Built with -DWRONG it makes two mistakes, which csa-spec finds and names: the sink is dropped, and a query
// sees the block that it is in.
#include <algorithm>
#include <cmath>
#include <iostream>
#include <limits>
#include <numeric>

#include "safetensors.hpp"

#ifdef WRONG
constexpr bool kWrong = true;
#else
constexpr bool kWrong = false;
#endif

// q [B, S, H, D], kv [B, N, D], indices [B, S, n] (-1: none), sinks [H], scale -> [B, S, H, D]
Tensor attend(const Tensor& q, const Tensor& kv, const Tensor& indices, const Tensor& sinks, double scale) {
    const int64_t S = q.size(1), H = q.size(2), D = q.size(3), N = kv.size(1), n = indices.size(2);
    std::vector<float> out(q.bytes.size() / sizeof(float), 0.0f);
    for (int64_t row = 0; row < q.size(0) * S; ++row) {
        const float* keys = kv.data<float>() + row / S * N * D;
        std::vector<const float*> listed;
        for (int64_t i = 0; i < n; ++i) {
            const int64_t index = indices.data<int64_t>()[row * n + i];
            if (index >= 0) listed.push_back(keys + index * D);
        }
        for (int64_t h = 0; h < H && !listed.empty(); ++h) {
            const float* query = q.data<float>() + (row * H + h) * D;
            std::vector<double> logits;
            for (const float* key : listed) logits.push_back(scale * std::inner_product(query, query + D, key, 0.0));
            const double sink = kWrong ? -std::numeric_limits<double>::infinity() : sinks.data<float>()[h];
            const double most = std::max(sink, *std::max_element(logits.begin(), logits.end()));
            double sum = std::exp(sink - most);
            for (double logit : logits) sum += std::exp(logit - most);
            for (int64_t d = 0; d < D; ++d) {
                double value = 0;
                for (size_t i = 0; i < listed.size(); ++i) value += std::exp(logits[i] - most) / sum * listed[i][d];
                out[(row * H + h) * D + d] = float(value);
            }
        }
    }
    return Tensor::of("F32", q.shape, out);
}

// scores [B, S, T], positions [B, S], compress_ratio, top_k -> indices [B, S, top_k] (-1: none)
Tensor select(const Tensor& scores, const Tensor& positions, int64_t compress_ratio, int64_t top_k) {
    const int64_t B = scores.size(0), S = scores.size(1), T = scores.size(2);
    std::vector<int64_t> out(B * S * top_k, -1);
    for (int64_t row = 0; row < B * S; ++row) {
        const float* own = scores.data<float>() + row * T;
        const int64_t position = positions.data<int64_t>()[row] + (kWrong ? compress_ratio : 1);
        std::vector<int64_t> visible(std::min(T, position / compress_ratio));
        std::iota(visible.begin(), visible.end(), 0);
        std::stable_sort(visible.begin(), visible.end(), [&](int64_t a, int64_t b) {
            return !std::isnan(own[a]) && (std::isnan(own[b]) || own[a] > own[b]);  // a NaN comes last
        });
        for (int64_t i = 0; i < std::min<int64_t>(top_k, visible.size()); ++i) out[row * top_k + i] = visible[i];
    }
    return Tensor::of("I64", {B, S, top_k}, out);
}

int main(int count, char** arguments) {
    if (count != 3) {
        std::cerr << "usage: answer VECTORS.safetensors ANSWERS.safetensors\n";
        return 2;
    }
    const Tensors vectors = read_safetensors(arguments[1]);
    Tensors answers;
    for (const auto& [key, first] : vectors) {
        const std::string attends = ".in.q", selects = ".in.scores";
        const auto ends_with = [&key = key](const std::string& end) {
            return key.size() > end.size() && key.compare(key.size() - end.size(), end.size(), end) == 0;
        };
        const bool is_attend = ends_with(attends);
        if (!is_attend && !ends_with(selects)) continue;
        const std::string name = key.substr(0, key.find(".in."));
        const auto in = [&](const std::string& argument) -> const Tensor& {
            return vectors.at(name + ".in." + argument);
        };
        answers[name] = is_attend ? attend(first, in("kv"), in("indices"), in("sinks"), *in("scale").data<double>())
                                  : select(first, in("positions"), *in("compress_ratio").data<int64_t>(),
                                           *in("top_k").data<int64_t>());
    }
    write_safetensors(arguments[2], answers);
    std::cout << answers.size() << " answers\n";
}
