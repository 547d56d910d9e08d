"""Unattended rollouts from the control machine: a timer that asks often, and a decision that
seldom says yes.
"""
