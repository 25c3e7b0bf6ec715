"""How long to wait before trying again. Pure: the random number is an argument."""

from __future__ import annotations

_LARGEST_EXPONENT = 62  # beyond this every sensible cap has long been reached


def delay_s(attempt: int, *, base_s: float, cap_s: float, random01: float) -> float:
    """Full-jitter exponential backoff: a point in `[0, min(cap_s, base_s * 2**attempt)]`.

    `attempt` counts from 0, `random01` is a number in `[0, 1]`. Spreading over the whole range
    (rather than around its end) keeps hundreds of machines that lost the coordinator at the
    same moment from coming back at the same moment.
    """
    exponent = min(max(attempt, 0), _LARGEST_EXPONENT)
    ceiling_s = min(cap_s, base_s * float(2**exponent))
    return max(0.0, ceiling_s) * min(max(random01, 0.0), 1.0)
