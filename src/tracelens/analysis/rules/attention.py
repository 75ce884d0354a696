"""Softmax and attention: rows in which everything is masked, and scores that overflowed."""

from __future__ import annotations

from tracelens.analysis.rules.case import Advice, Case, Table, plural, say, shown, then
from tracelens.analysis.rules.case import magnitude as largest
from tracelens.analysis.state import Bad

_SOFTMAX = "softmax _softmax log_softmax _log_softmax _safe_softmax _masked_softmax softmin"
_ATTENTION = (
    "scaled_dot_product_attention _scaled_dot_product_attention_math "
    "_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_attention _native_multi_head_attention"
)


def fully_masked_row(case: Case) -> Advice | None:
    """``softmax`` of a row of nothing but -Inf: ``-inf - -inf``, or 0 / 0."""
    masked = [t.stats.neginf for t in case.inputs if t.stats is not None]
    if case.kind is not Bad.NAN or (masked and not any(masked)):
        return None
    if not masked and case.name not in _ATTENTION.split():
        return None
    how_many = ""
    if masked:
        how_many = f"{plural(max(masked), 'score')} {'is' if max(masked) == 1 else 'are'} -inf, "
    return Advice(
        "fully-masked-row",
        f"{how_many}and at least one row has nothing else: a softmax over only -inf is "
        f"0 / 0{then(case)}.",
        "leave one key unmasked in every row (for a padded query: its own position), or "
        + case.words("own-position", lowest=case.words("lowest", x="scores")),
    )


def infinite_score(case: Case) -> Advice | None:
    """``softmax`` of a +Inf: ``inf - inf``."""
    held = [t.stats.posinf for t in case.inputs if t.stats is not None]
    if case.kind is not Bad.NAN or not any(held):
        return None
    return Advice(
        "softmax-of-inf",
        f"{shown(case.op)} read {plural(max(held), 'score')} of +inf: inf - inf = nan{then(case)}.",
        "bound the logits before the softmax: "
        f"{case.words('between', x='logits', low='-1e4', high='1e4')}, or normalise q and k",
    )


def attention_overflow(case: Case) -> Advice | None:
    """Scores ``q @ k`` past the range of a half type."""
    limit = case.limits
    top = largest(case.inputs)
    if limit is None:
        return None
    return Advice(
        "attention-overflow",
        f"{shown(case.op)} multiplies queries and keys up to {say(top)}: their products leave the "
        f"range of {case.dtype} (limit {say(limit.largest)}){then(case)}.",
        "scale q before the product (q / sqrt(d)), normalise q and k, or use bfloat16 / float32 "
        "for the scores",
    )


RULES: Table = {
    _SOFTMAX: (infinite_score, fully_masked_row),
    _ATTENTION: (infinite_score, fully_masked_row, attention_overflow),
}
