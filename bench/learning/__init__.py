"""What training on idle devices brings: accept length by tokens and seconds, and how fast it is back after RL steps."""
