// The multi-token prediction head, docs/model.md: what a step leaves for it, and its guesses.
//
// Its layer attends to what it made of earlier positions: keys and values need no more than fc and
// two projections, so every step stores them, of prompts too, and a guess computes one row.
#include "common/base/status_macros.h"
#include "services/gpu-worker/engine/forward.h"

namespace hearth::worker {

void Forward::StoreForDrafts() {
  const AttentionWeights& w = weights_.mtp->layer.attention;
  ops_.ShiftHidden(config_.hidden_size, a_.h, a_.shared);                              // [T, D]
  EnterMtpLayer(a_.shared);                                                            // -> x, h
  const Backend::Product products[] = {{&w.k_proj.ref, a_.k}, {&w.v_proj.ref, a_.v}};  // [T, G, d]
  ops_.Linears(products, a_.h);
  ops_.StoreOneBefore(attention_shape_, mtp_attention_,
                      {w.q_norm.data(), w.k_norm.data(), static_cast<float>(config_.rms_norm_eps)},
                      a_.k, a_.v);
}

absl::Status Forward::Draft(const Batch& batch, int depth, const std::function<bool()>& interrupted,
                            float* logits) {
  HEARTH_RETURN_IF_ERROR(ops_.Begin(batch));
  HEARTH_RETURN_IF_ERROR(EnqueueDraft(batch, depth));
  HEARTH_RETURN_IF_ERROR(ops_.Finish(logits));
  return interrupted() ? absl::CancelledError("the draft was interrupted") : absl::OkStatus();
}

absl::Status Forward::EnqueueDraft(const Batch& batch, int depth) {
  const LayerWeights& w = weights_.mtp->layer;
  const int width = config_.hidden_size;
  const auto eps = static_cast<float>(config_.rms_norm_eps);

  ops_.LoadHidden(width, depth > 0, a_.shared);  // [T, D]
  EnterMtpLayer(a_.shared);                      // -> x, h
  Attention(w.attention, mtp_attention_);        // h -> delta
  ops_.AddRmsNorm(width, a_.x, a_.delta, w.post_attention_norm.data(), eps, a_.h);
  HEARTH_RETURN_IF_ERROR(Experts(w.experts, config_.n_layers, batch.n_rows()));
  ops_.AddRmsNorm(width, a_.x, a_.delta, weights_.mtp->norm.data(), eps, a_.h);
  ops_.KeepDraftHidden(width, a_.h);
  ops_.Head(weights_.head.ref, a_.h);  // [T, V]
  return absl::OkStatus();
}

void Forward::EnterMtpLayer(float* hidden) {
  const MtpWeights& w = *weights_.mtp;
  const int width = config_.hidden_size;
  const auto eps = static_cast<float>(config_.rms_norm_eps);

  ops_.Embed(weights_.embedding.ref, a_.x);                                       // [T, D]
  ops_.AddRmsNorm(width, a_.x, nullptr, w.embedding_norm.data(), eps, a_.delta);  // [T, D]
  ops_.AddRmsNorm(width, hidden, nullptr, w.hidden_norm.data(), eps, a_.h);       // [T, D]
  ops_.Join(width, a_.delta, a_.h, a_.joined);                                    // [T, 2 D]
  const Backend::Product fc[] = {{&w.fc.ref, a_.x}};                              // [T, D]
  ops_.Linears(fc, a_.joined);
  ops_.AddRmsNorm(width, a_.x, nullptr, w.layer.input_norm.data(), eps, a_.h);
}

}  // namespace hearth::worker
