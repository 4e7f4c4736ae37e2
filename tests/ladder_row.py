"""One row of a perplexity ladder, as a table of a report holds it."""

ROW = {
    **{"method": "wanda", "settings": "Wanda()", "pattern": "2:4", "search": "none"},
    **{"reconstruct": False, "calibration": "sequential", "allocation": "", "dense": False},
    **{"perplexity": 30.0, "retained_share": 0.8, "output_error": 0.1, "prune_seconds": 2.0},
}
