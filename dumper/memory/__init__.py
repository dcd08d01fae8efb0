"""Copies of values in memory on their way to the file: buffers, slabs, copies from devices."""
