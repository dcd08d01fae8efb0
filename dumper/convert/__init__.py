"""Other formats: SGLang's ``.pt`` dumps read as runs, and runs written as ``.pt`` or safetensors."""
