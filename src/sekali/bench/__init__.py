"""The benchmarks behind ``sekali bench``. They drive a real server process over HTTP and import nothing of it."""
