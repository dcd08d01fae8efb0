"""What tests and the demo share: small models, real servers, synthetic runs."""
