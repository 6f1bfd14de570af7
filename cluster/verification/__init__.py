"""Whether an answer is what was asked for: comparators, a compact verifier's judgement, an operator's own hook."""
