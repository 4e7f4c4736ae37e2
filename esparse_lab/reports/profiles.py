"""How much a report measures: named sets of notebook parameters.

A value goes to each notebook that declares a parameter of that name.
"""

PROFILES: dict[str, dict[str, object]] = {
    # The notebooks' own defaults are the quick values (8 x 512 calibration tokens, 8 test windows
    # of 512), so that a notebook opened by hand and the quick report measure the same.
    "quick": {},
    # Wanda's calibration size and the whole test split in windows of 2048; 0 means all.
    "full": {
        "n_sequences": 128,
        "length": 2048,
        "n_windows": 0,
        "limit": 0,
        "window_length": 2048,
    },
}
