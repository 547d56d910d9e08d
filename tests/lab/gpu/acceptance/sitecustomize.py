"""On a host of the lab: vLLM takes drafted tokens as right at given rates, since what random weights draft
never is.

Python loads it at its start, where PYTHONPATH has this folder. The rates are those of vLLM's own `synthetic`
rejection sampling: the share of drafts that are right up to each position.
"""

import json
import os
import sys

FLAG = "--speculative-config"

if FLAG in sys.argv and "LAB_ACCEPTANCE" in os.environ:
    place = sys.argv.index(FLAG) + 1
    asked = json.loads(sys.argv[place])
    rates = [float(rate) for rate in os.environ["LAB_ACCEPTANCE"].split(",")]
    synthetic = {
        "rejection_sample_method": "synthetic",
        "synthetic_acceptance_rates": rates[: asked["num_speculative_tokens"]],
    }
    sys.argv[place] = json.dumps(asked | synthetic)
