"""Unattended rollouts from the control machine: a timer, and the decision whether a rollout is due."""
