// Reads and writes safetensors files: https://huggingface.co/docs/safetensors
#pragma once

#include <cctype>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

struct Tensor {
    std::string dtype;  // as in the file: "F32", "I64", ...
    std::vector<int64_t> shape;
    std::vector<char> bytes;

    int64_t size(int dimension) const { return shape.at(dimension); }

    template <typename T>
    const T* data() const {
        return reinterpret_cast<const T*>(bytes.data());
    }

    template <typename T>
    static Tensor of(const std::string& dtype, std::vector<int64_t> shape, const std::vector<T>& values) {
        const char* begin = reinterpret_cast<const char*>(values.data());
        return {dtype, std::move(shape), std::vector<char>(begin, begin + values.size() * sizeof(T))};
    }
};

using Tensors = std::map<std::string, Tensor>;

// The header is JSON of one form only: {"name": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}, ...}.
class Header {
  public:
    explicit Header(std::string text) : text_(std::move(text)) {}

    Tensors read(const std::vector<char>& data) {
        Tensors tensors;
        for (expect('{'); !accept('}'); accept(',')) {
            std::string name = string();
            expect(':');
            Tensor tensor;
            std::vector<int64_t> offsets;
            for (expect('{'); !accept('}'); accept(',')) {
                std::string key = string();
                expect(':');
                if (key == "shape") tensor.shape = numbers();
                else if (key == "data_offsets") offsets = numbers();
                else (key == "dtype" ? tensor.dtype : key) = string();  // others are notes of "__metadata__"
            }
            if (name == "__metadata__") continue;
            if (offsets.size() != 2 || offsets[1] > int64_t(data.size())) throw std::runtime_error("bad offsets");
            tensor.bytes.assign(data.begin() + offsets[0], data.begin() + offsets[1]);
            tensors[name] = std::move(tensor);
        }
        return tensors;
    }

  private:
    void skip() {
        while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
    }
    bool accept(char c) {
        skip();
        if (at_ >= text_.size() || text_[at_] != c) return false;
        ++at_;
        return true;
    }
    void expect(char c) {
        if (!accept(c)) throw std::runtime_error(std::string("the header lacks a ") + c);
    }
    std::string string() {  // names of csa-spec have no escapes
        expect('"');
        size_t end = text_.find('"', at_);
        if (end == std::string::npos) throw std::runtime_error("a name does not end");
        std::string value = text_.substr(at_, end - at_);
        at_ = end + 1;
        return value;
    }
    std::vector<int64_t> numbers() {
        std::vector<int64_t> values;
        for (expect('['); !accept(']'); accept(',')) {
            skip();
            size_t length = 0;
            values.push_back(std::stoll(text_.substr(at_, 20), &length));
            at_ += length;
        }
        return values;
    }

    std::string text_;
    size_t at_ = 0;
};

inline Tensors read_safetensors(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    uint64_t length = 0;
    if (!file.read(reinterpret_cast<char*>(&length), sizeof length)) throw std::runtime_error("cannot read " + path);
    std::string header(length, ' ');
    file.read(header.data(), length);
    std::vector<char> data((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    return Header(std::move(header)).read(data);
}

inline void write_safetensors(const std::string& path, const Tensors& tensors) {
    std::string header = "{", data;
    for (const auto& [name, tensor] : tensors) {
        std::string shape;
        for (int64_t size : tensor.shape) shape += (shape.empty() ? "" : ",") + std::to_string(size);
        header += (header.size() > 1 ? ",\"" : "\"") + name + "\":{\"dtype\":\"" + tensor.dtype + "\",\"shape\":[" +
                  shape + "],\"data_offsets\":[" + std::to_string(data.size()) + ",";
        data.append(tensor.bytes.begin(), tensor.bytes.end());
        header += std::to_string(data.size()) + "]}";
    }
    header += "}";
    uint64_t length = header.size();
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&length), sizeof length);
    if (!(file << header << data)) throw std::runtime_error("cannot write " + path);
}
