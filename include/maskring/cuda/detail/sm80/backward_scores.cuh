// SPDX-License-Identifier: Apache-2.0
// From products in registers to weights and their gradients in shared memory.
#pragma once

#include <maskring/cuda/detail/learn.cuh>
#include <maskring/cuda/detail/ptx/exp2.cuh>
#include <maskring/cuda/detail/sm80/backward_warps.cuh>
#include <maskring/cuda/detail/sm80/tile_blocks.cuh>
#include <maskring/cuda/detail/softmax.cuh>

#include <iterator>
#include <type_traits>

namespace maskring::cuda::detail::sm80 {

/// A warp's scores of one tile. `Kept` says what the mask leaves of them: all_entries where that is
/// all. Nothing is kept outside of `Part`, which is all that is computed.
template <class Arguments>
class backward_scores {
  static constexpr backward_policy P = Arguments::policy;
  using T = typename Arguments::input_type;
  using at = backward_warps<P>;
  using layout = typename at::score_layout;
  using scores = typename at::scores;
  /// Rows of blocks that a warp makes weights of, see hand_over.
  static constexpr int rows = Arguments::has_score ? at::s_rows / 2 : at::s_rows;

public:
  /// `origin` is where the thread's first score lies.
  __device__ backward_scores(const Arguments& args, const at& me, std::uint32_t shared, int stage,
                             const score_origin& origin)
      : args_{args}, me_{me}, shared_{shared}, stage_{stage}, origin_{origin} {}

  /// The entries that the mask keeps of the rows that the warp makes weights of: bits, 8 to a
  /// block.
  struct kept_entries {
    std::uint32_t word[(rows * at::s_columns + 3) / 4] = {};

    __device__ bool has(int m, int n, int i) const {
      const int block = m * at::s_columns + n;
      return word[block / 4] >> (block % 4 * 8 + i) & 1;
    }
  };
  struct all_entries {
    static constexpr std::true_type has(int, int, int) { return {}; }
  };

  /// Asks the mask about the elements of partial blocks, if this warp needs to know.
  template <class Question, class Blocks>
  __device__ kept_entries look_at_entries(const Question& question, const Blocks& tile) const {
    kept_entries out;
    if (!Arguments::has_score && !me_.of_weights()) return out;
#pragma unroll 1
    for (int block = 0; block < rows * at::s_columns; ++block) {
      const int m = first_row() + block / at::s_columns, n = block % at::s_columns;
      const int row = me_.score_row() / 16 + m * at::s_q;
      const int column = me_.score_column() / 16 + n * at::s_kv;
      std::uint32_t bits = Blocks::has(tile.seen, row, column) ? 0xff : 0;
      if (Blocks::has(tile.some, row, column)) bits = kept_elements(question, block_origin(m, n));
#pragma unroll
      for (int w = 0; w < static_cast<int>(std::size(out.word)); ++w) {
        out.word[w] |= (block / 4 == w ? bits : 0) << block % 4 * 8;
      }
    }
    return out;
  }

  /// Scores become weights.
  template <key_part Part, class Kept>
  __device__ void weigh(scores& s, const Kept& kept) const {
    const auto weights = writer(P.p_at());
    const float unit = args_.scale * log2_e;
#pragma unroll
    for (int m = 0; m < at::s_rows; ++m) {
      float lse[2];
      load_rows(lse, at::lse_at(stage_), m);
#pragma unroll
      for (int n = columns<Part>.first; n < columns<Part>.last; ++n) {
        float* const p = s[m] + 8 * n;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          p[i] = ptx::exp2(p[i] * unit - lse[fragment_layout::row(i)]);
          if (!kept.has(m, n, i)) p[i] = 0;
        }
        store(weights, p, m, n);
      }
    }
  }

  /// Products of output gradients and values become gradients of scores, by the weights that the
  /// other group left.
  template <key_part Part>
  __device__ void differentiate(scores& ds) const {
    const auto weights = reader(P.p_at());
    const auto gradients = writer(P.ds_at());
#pragma unroll
    for (int m = 0; m < at::s_rows; ++m) {
      float delta[2];
      load_rows(delta, at::delta_at(stage_), m);
#pragma unroll
      for (int n = columns<Part>.first; n < columns<Part>.last; ++n) {
        float* const d = ds[m] + 8 * n;
        std::uint32_t word[4];
        weights.load(word, m * at::s_q, n * at::s_kv);
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          float p[2];
          ptx::unpack<T>(word[w], p[0], p[1]);
          d[2 * w] = p[0] * (d[2 * w] - delta[w % 2]);
          d[2 * w + 1] = p[1] * (d[2 * w + 1] - delta[w % 2]);
        }
        store(gradients, d, m, n);
      }
    }
  }

  // With a score modifier a thread needs both products of a pair. The weights' group finishes the
  // upper half of the rows, the other the lower, and each hands its products of the others over.

  /// Leaves products in the places of weights and gradients: rounded to 16 bits, and what that took
  /// off.
  template <key_part Part>
  __device__ void hand_over(const scores& s) const {
    static_assert(at::s_rows % 2 == 0);
    const auto upper = writer(P.p_at());
    const auto lower = writer(P.ds_at());
    const int first = (rows - first_row()) * at::s_q;
#pragma unroll
    for (int m = 0; m < rows; ++m) {
#pragma unroll
      for (int n = columns<Part>.first; n < columns<Part>.last; ++n) {
        std::uint32_t high[4], low[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          float x[2], rounded[2];
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int i = 8 * n + 2 * w + j;
            x[j] = me_.of_weights() ? s[m + rows][i] : s[m][i];
          }
          high[w] = ptx::pack<bfloat16>(x[0], x[1]);
          ptx::unpack<bfloat16>(high[w], rounded[0], rounded[1]);
          low[w] = ptx::pack<bfloat16>(x[0] - rounded[0], x[1] - rounded[1]);
        }
        upper.store(high, first + m * at::s_q, n * at::s_kv);
        lower.store(low, first + m * at::s_q, n * at::s_kv);
      }
    }
  }

  /// When the other group has handed over its part.
  template <key_part Part, class Kept>
  __device__ void finish(const scores& s, const Kept& kept) const {
    const int first = first_row();
#pragma unroll
    for (int m = 0; m < rows; ++m) {
      const int row = (first + m) * at::s_q;
      float lse[2], delta[2];
      load_rows(lse, at::lse_at(stage_), first + m);
      load_rows(delta, at::delta_at(stage_), first + m);
#pragma unroll
      for (int n = columns<Part>.first; n < columns<Part>.last; ++n) {
        std::uint32_t high[4], low[4];
        reader(P.p_at()).load(high, row, n * at::s_kv);
        reader(P.ds_at()).load(low, row, n * at::s_kv);
        __syncwarp(); // all lanes have read what they overwrite below
        float p[8], ds[8];
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
          float x[2], y[2];
          ptx::unpack<bfloat16>(high[i / 2], x[0], x[1]);
          ptx::unpack<bfloat16>(low[i / 2], y[0], y[1]);
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const float other = x[j] + y[j];
            p[i + j] = me_.of_weights() ? s[m][8 * n + i + j] : other;
            ds[i + j] = me_.of_weights() ? other : s[m + rows][8 * n + i + j];
          }
        }
        modify(p, ds, lse, delta, block_origin(first + m, n), kept, m, n);
        store(writer(P.p_at()), p, first + m, n);
        store(writer(P.ds_at()), ds, first + m, n);
      }
    }
  }

private:
  template <key_part Part>
  static constexpr block_range columns = blocks_of(Part, at::s_columns);

  /// A block's raw products become weights and gradients.
  template <class Kept>
  __device__ void modify(float (&p)[8], float (&ds)[8], const float (&lse)[2],
                         const float (&delta)[2], const score_origin& o, const Kept& kept, int m,
                         int n) const {
    const auto score = score_at(args_.score, o.batch, o.head);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int r = fragment_layout::row(i);
      int q = o.q + 8 * r, kv = o.kv + fragment_layout::column(i);
      if constexpr (!std::is_same_v<Kept, all_entries>) { // tables must not be read past their ends
        q = min(q, args_.q_len - 1);
        kv = min(kv, args_.kv_len - 1);
      }
      modify_pair<T>(args_.score, score, args_.scale, lse[r], delta[r], kept.has(m, n, i),
                     {o.batch, o.head, q, kv}, p[i], ds[i]);
    }
  }

  /// The first row of blocks that this warp makes weights of.
  __device__ int first_row() const { return Arguments::has_score && !me_.of_weights() ? rows : 0; }

  __device__ auto reader(int tile) const {
    return block_reader<layout, false>{shared_ + tile, me_.score_row(), me_.score_column() / 8};
  }
  __device__ auto writer(int tile) const {
    return block_writer<layout>{shared_ + tile, me_.score_row(), me_.score_column() / 8};
  }

  /// Writes a block, rounded to T.
  __device__ static void store(const block_writer<layout>& to, const float* s, int m, int n) {
    std::uint32_t word[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) word[w] = ptx::pack<T>(s[2 * w], s[2 * w + 1]);
    to.store(word, m * at::s_q, n * at::s_kv);
  }

  /// What lies at `where` in shared memory of the thread's two query rows in row m of blocks.
  __device__ void load_rows(float (&value)[2], int where, int m) const {
    const int row = me_.score_row() + 16 * m * at::s_q + fragment_layout::first_row(at::lane());
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      asm volatile("ld.shared.f32 %0, [%1];"
                   : "=f"(value[r])
                   : "r"(shared_ + where + 4 * (row + 8 * r)));
    }
  }

  __device__ score_origin block_origin(int m, int n) const {
    return {origin_.batch, origin_.head, origin_.q + 16 * m * at::s_q,
            origin_.kv + 16 * n * at::s_kv};
  }

  const Arguments& args_;
  const at& me_;
  std::uint32_t shared_;
  int stage_;
  const score_origin& origin_;
};

} // namespace maskring::cuda::detail::sm80
