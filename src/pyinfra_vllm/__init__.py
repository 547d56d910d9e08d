"""Off-peak, self-rolling-back rollouts of AWQ models onto fleets of vLLM hosts."""

import os

# Read when huggingface_hub is imported. Without it a call for headers may ask the Hub for its list of agents
# (`/api/agent-harnesses`), whose answer is unpacked without a limit: 863 MB of memory from 5 kB (measured).
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
