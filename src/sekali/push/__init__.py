"""Delivery by push: events sent to webhooks, one a request, until each is acknowledged or given up."""
