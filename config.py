"""pyinfra reads this before it contacts any host: so here everything declared is checked."""

from pyinfra_vllm import fleet

fleet.check()
