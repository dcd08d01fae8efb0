"""What runs on the writer's thread: records to frames to the rank's file."""
