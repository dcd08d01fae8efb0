"""What the three packages share. It imports none of them, and they meet here and in files alone."""
