"""Logs, metrics, timings and status: what an operator sees."""
