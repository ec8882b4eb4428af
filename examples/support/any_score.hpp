// SPDX-License-Identifier: Apache-2.0
// One type for all score modifiers, for programs on the host that choose theirs at run time.
#pragma once

#include "score_names.hpp"
#include "tables.hpp"

#include <memory>
#include <string>
#include <vector>

namespace examples {

/// A score modifier behind function pointers, one for each kind of number. The modifier itself is
/// somebody else's; what it learns is not handed on.
class any_score {
public:
  template <maskring::score_mod Score>
  explicit any_score(const Score* score)
      : score_{score},
        on_float_{&call<Score, float>},
        on_double_{&call<Score, double>},
        on_dual_{&call<Score, maskring::dual<float>>},
        on_dual_double_{&call<Score, maskring::dual<double>>} {}

  float operator()(float s, int b, int h, int q, int kv) const {
    return on_float_(score_, s, b, h, q, kv);
  }
  double operator()(double s, int b, int h, int q, int kv) const {
    return on_double_(score_, s, b, h, q, kv);
  }
  maskring::dual<float> operator()(maskring::dual<float> s, int b, int h, int q, int kv) const {
    return on_dual_(score_, s, b, h, q, kv);
  }
  maskring::dual<double> operator()(maskring::dual<double> s, int b, int h, int q, int kv) const {
    return on_dual_double_(score_, s, b, h, q, kv);
  }
  friend bool operator==(const any_score& a, const any_score& b) { return a.score_ == b.score_; }

private:
  template <class Number>
  using function = Number (*)(const void*, Number, int, int, int, int);

  template <class Score, class Number>
  static Number call(const void* score, Number s, int b, int h, int q, int kv) {
    return (*static_cast<const Score*>(score))(s, b, h, q, kv);
  }

  const void* score_;
  function<float> on_float_;
  function<double> on_double_;
  function<maskring::dual<float>> on_dual_;
  function<maskring::dual<double>> on_dual_double_;
};

/// Keeps score modifiers on the host, and their tables.
class host_scores {
public:
  host_tables& tables() { return tables_; }
  template <class Score>
  any_score operator()(const Score& score) {
    const auto kept = std::make_shared<const Score>(score);
    scores_.push_back(kept);
    return any_score{kept.get()};
  }

private:
  host_tables tables_;
  std::vector<std::shared_ptr<const void>> scores_;
};

/// Makes score modifiers from text: names as with_score takes them, joined by > for one after the
/// other. The keeper keeps them and makes one type of all.
template <class Keeper>
class named_scores {
public:
  using any = decltype(std::declval<Keeper&>()(maskring::score::none{}));

  explicit named_scores(const mask_shape& shape) : shape_{shape} {}

  /// @throws std::invalid_argument for unknown names and bad arguments.
  any operator()(const std::string& text) {
    if (const auto at = text.rfind('>'); at != std::string::npos) {
      return keep_(maskring::score::then<any, any>{(*this)(text.substr(0, at)),
                                                   (*this)(text.substr(at + 1))});
    }
    return with_score(text, shape_, keep_.tables(),
                      [&](const auto& score, const char*) { return keep_(score); });
  }

private:
  mask_shape shape_;
  Keeper keep_;
};

using score_library = named_scores<host_scores>;

} // namespace examples
