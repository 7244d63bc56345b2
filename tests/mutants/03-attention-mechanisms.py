"""Mutants of topic 03: attention and masks."""

from __future__ import annotations

from mutant import Mutant

_ATTENTION = "03-attention-mechanisms/attention.py"
_ATTENTION_TESTS = ("tests/03-attention-mechanisms/test_attention.py",)
_MASKS = "03-attention-mechanisms/masks.py"
_MASKS_TESTS = ("tests/03-attention-mechanisms/test_masks.py",)

MUTANTS = [
    Mutant(
        name="forget-the-root-of-the-head-width",
        module=_ATTENTION,
        old="(1.0 / math.sqrt(K) if scale is None else scale)",
        new="(1.0 / K if scale is None else scale)",
        tests=_ATTENTION_TESTS,
        symptom="trains, but worse: attention stays nearly uniform",
        finder="parity with F.scaled_dot_product_attention",
    ),
    Mutant(
        name="causal-flag-with-a-cache",
        module=_ATTENTION,
        old="        if T == S:\n            return F.scaled",
        new="        if T <= S:\n            return F.scaled",
        tests=_ATTENTION_TESTS,
        symptom="training is right; a prompt read in pieces is forgotten from the second piece on",
        finder="cached equals uncached under any chunking",
    ),
    Mutant(
        name="empty-rows-become-nan",
        module=_ATTENTION,
        old="keepdim=True).clamp(min=1.0)",
        new="keepdim=True)",
        tests=_ATTENTION_TESTS,
        symptom="one batch with a row of nothing but padding turns the loss into NaN",
        finder="a row with nothing to attend is zero with finite gradients",
    ),
    Mutant(
        name="interleaved-kv-heads",
        module=_ATTENTION,
        old="x.repeat_interleave(repeats, dim=1)",
        new="x.repeat(1, repeats, 1, 1)",
        tests=_ATTENTION_TESTS,
        symptom="a grouped-query checkpoint speaks gibberish; a model trained so is as good",
        finder="parity at num_kv_heads below num_heads",
    ),
    Mutant(
        name="cache-before-rotation",
        module=_ATTENTION,
        old="                q, k = rotary(q), rotary(k)\n",
        new="                q, k = rotary(q), rotary(k) if cache is None else k\n",
        tests=_ATTENTION_TESTS,
        symptom="training loss is fine, generated text wanders off at once",
        finder="cached equals uncached under any chunking, with rotary positions",
    ),
    Mutant(
        name="keys-not-normalised",
        module=_ATTENTION,
        old="        if self.k_norm is not None:\n",
        new="        if self.k_norm is not None and self.q_norm is None:\n",
        tests=_ATTENTION_TESTS,
        symptom="QK-norm is on, yet attention logits still grow until training breaks",
        finder="QK-norm against the written-out formula",
    ),
    Mutant(
        name="keep-means-hide",
        module=_ATTENTION,
        old="past if keep is None else keep & past",
        new="past if keep is None else ~keep & past",
        tests=_ATTENTION_TESTS,
        symptom="the model attends to padding and to nothing else",
        finder="parity with key_padding_mask of nn.MultiheadAttention",
    ),
    Mutant(
        name="dropout-while-evaluating",
        module=_ATTENTION,
        old="dropout_p=self.dropout if self.training else 0.0,",
        new="dropout_p=self.dropout,",
        tests=_ATTENTION_TESTS,
        symptom="evaluation is worse than training and differs from run to run",
        finder="eval mode equals nn.MultiheadAttention",
    ),
    Mutant(
        name="scores-in-low-precision",
        module=_ATTENTION,
        old="    precise = torch.promote_types(q.dtype, torch.float32)\n",
        new="    precise = q.dtype\n",
        tests=_ATTENTION_TESTS,
        symptom="bf16 results drift from fp32 with the length",
        finder="only the result of low-precision attention is rounded",
    ),
    Mutant(
        name="causal-off-by-one",
        module=_MASKS,
        old=".tril(S - T)",
        new=".tril(S - T + 1)",
        tests=_MASKS_TESTS,
        symptom="the loss falls to almost nothing, and samples are rubbish",
        finder="every pair against the rule; no gradient from the future",
    ),
    Mutant(
        name="window-one-too-wide",
        module=_MASKS,
        old="(distance < window * dilation)",
        new="(distance <= window * dilation)",
        tests=_MASKS_TESTS,
        symptom="a sliding-window checkpoint is a little off beyond its window",
        finder="every pair against the rule; the count of allowed pairs",
    ),
    Mutant(
        name="positions-aligned-to-the-start",
        module=_MASKS,
        old="torch.arange(S - T, S, device=device)",
        new="torch.arange(T, device=device)",
        tests=_MASKS_TESTS,
        symptom="windows are right in training and cut off the past when decoding with a cache",
        finder="fewer queries than keys are the last rows of the square mask",
    ),
    Mutant(
        name="bigbird-draws-what-it-has",
        module=_MASKS,
        old=".masked_fill(layout, 2.0)",
        new="",
        tests=_MASKS_TESTS,
        symptom="fewer random blocks than asked for, since some were in the window already",
        finder="the exact count of blocks in each row",
    ),
]
