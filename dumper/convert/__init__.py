"""Recordings written in other formats: as a run, as SGLang's ``.pt`` files, as safetensors."""
