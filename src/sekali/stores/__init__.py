"""Stores: each keeps the promise of ``sekali.ports.EventStore`` in its own way, and none imports another."""
