"""Where units of work are measured: in this process, or in several."""
