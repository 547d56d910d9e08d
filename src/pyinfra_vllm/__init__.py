"""Off-peak, self-rolling-back rollouts of AWQ models onto fleets of vLLM hosts."""
