"""A recorded run, read without copies; its listing, its checks and its repair."""
