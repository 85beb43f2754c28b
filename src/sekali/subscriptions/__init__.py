"""Durable subscriptions: who may have which events now (``lanes``), and what waits, reads and commits around that."""
