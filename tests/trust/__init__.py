"""What the recorded process and the reader of a recording may be met with, and what must not come of it."""
