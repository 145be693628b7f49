"""Metrics, predictions, statistics, the audit, linear probes and label errors."""
