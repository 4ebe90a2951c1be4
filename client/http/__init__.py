"""What reads and writes HTTP."""
