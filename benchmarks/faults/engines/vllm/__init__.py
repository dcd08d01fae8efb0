"""Real vLLM servers, of the same checkpoints as SGLang's: ``engine`` records."""
