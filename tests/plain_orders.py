"""What orders of channels keep, written as plainly as possible."""

from esparse_lab import Pattern


def kept_score(rows: list[list[float]], order: list[int], pattern: Pattern) -> float:
    """Score that an N:M mask keeps."""
    kept = 0.0
    for row in rows:
        for start in range(0, len(order), pattern.m):
            group = sorted((row[c] for c in order[start : start + pattern.m]), reverse=True)
            kept += sum(group[: pattern.n])
    return kept
