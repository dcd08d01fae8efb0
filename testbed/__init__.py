"""What tests, the demo and the benchmarks share: small models, real servers, synthetic runs."""
