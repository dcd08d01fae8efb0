"""What a recording is to its readers, how one is opened, and how it is shown."""
