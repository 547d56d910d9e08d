"""Attackers as processes of a real host: what they try must fail, and the rollout must not suffer from it."""
