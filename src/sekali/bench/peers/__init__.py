"""Other systems that could do the job, under the same events, each told to be durable before it answers."""
