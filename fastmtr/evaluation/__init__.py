"""How good the scores are: metrics, baselines and comparisons with intervals."""
